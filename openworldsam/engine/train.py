"""The command line of tools/train_net.py."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from openworldsam.config import load_config
from openworldsam.engine.dry_run import describe
from openworldsam.engine.trainer import Trainer
from openworldsam.engine.training_state import newest_state
from openworldsam.utils.device import usable_device
from openworldsam.utils.launch import launch_command
from openworldsam.utils.locking import lock


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the adapter of OpenWorldSAM.")
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the newest state in OUTPUT_DIR")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, and stop")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="address of the first machine")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="override config keys")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    """What every process runs."""
    cfg = load_config(args.config_file, args.opts)
    if args.dry_run:
        if comm.is_main_process():
            print(describe(cfg))
        return
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    folder = Path(cfg.OUTPUT_DIR)
    alone = lock(folder / ".lock", f"another training writes to {folder} just now; use another OUTPUT_DIR")
    with alone if comm.is_main_process() else contextlib.nullcontext():
        if not args.resume and newest_state(folder):
            raise ValueError(f"{folder} holds a training already: give --resume, or another OUTPUT_DIR")
        setup_logger(str(folder), comm.get_rank(), name="openworldsam")
        trainer = Trainer(cfg)
        if args.resume:
            trainer.resume()
        if comm.is_main_process():
            (folder / "config.yaml").write_text(cfg.dump())
        trainer.run()


def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes; exits with 2 after a user error."""
    args = parse_args(argv)
    logging.captureWarnings(True)
    # Detectron2 logs the traceback of whatever ends the loop; launch_command says in a line what it was
    loop = logging.getLogger("detectron2.engine.train_loop")
    loop.addHandler(logging.NullHandler())
    loop.propagate = False
    where = {name: getattr(args, name) for name in ("num_gpus", "num_machines", "machine_rank", "dist_url")}
    stopped = "stopped; --resume goes on from the last state in OUTPUT_DIR"
    launch_command(train, stopped=stopped, args=(args,), **where)
