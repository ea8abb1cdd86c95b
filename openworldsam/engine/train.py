"""The command line of tools/train_net.py."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

import openworldsam.data.datasets  # noqa: F401  (registers the datasets)
from openworldsam.config import load_config
from openworldsam.engine.launch import launch
from openworldsam.engine.trainer import Trainer


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
    """What every process runs; user errors are one line and exit status 2."""
    try:
        cfg = load_config(args.config_file, args.opts)
        if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
            print("warning: no cuda on this machine, training on the CPU", file=sys.stderr)
            cfg.MODEL.DEVICE = "cpu"
        folder = Path(cfg.OUTPUT_DIR)
        setup_logger(None if args.dry_run else str(folder), comm.get_rank(), name="openworldsam")
        trainer = Trainer(cfg)
        if args.dry_run:
            if comm.is_main_process():
                print(describe(trainer))
            return
        if args.resume:
            trainer.resume()
        elif (folder / "last_checkpoint").is_file():
            raise ValueError(f"{folder} holds a training already: give --resume, or another OUTPUT_DIR")
        if comm.is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(cfg.dump())
        trainer.run()
    except (ValueError, OSError, KeyError, FloatingPointError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if message.startswith("Caught "):  # by a reading process, with its traceback
            message = message.strip().splitlines()[-1]
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def describe(trainer: Trainer) -> str:
    """Config, data, trained parameters and schedule of a training that has not begun."""
    cfg, images = trainer.cfg, len(trainer.dataset.records)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    # fp32 each: the frozen weights; of what is trained, its weights, gradients and AdamW's two moments
    frozen = 4 * sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    optimized = 16 * sum(p.numel() for p in trained)
    epochs = trainer.max_iter * cfg.SOLVER.IMS_PER_BATCH / images
    drops = ", ".join(f"{step:,} ({100 * step / trainer.max_iter:.1f} %)" for step in cfg.SOLVER.STEPS)
    lines = [
        cfg.dump(),
        f"preset       {cfg.PRESET}",
        f"data         {', '.join(cfg.DATASETS.TRAIN)}: {images:,} images",
        f"trained      {sum(p.numel() for p in trained):,} parameters in {len(trained)} tensors",
        f"batch        {cfg.SOLVER.IMS_PER_BATCH} images on {comm.get_world_size()} processes, "
        f"{trainer.parts} parts of {trainer.part_size}",
        f"iterations   {trainer.max_iter:,} ({epochs:.1f} epochs), learning rate {cfg.SOLVER.BASE_LR:g}, "
        f"x {cfg.SOLVER.GAMMA:g} at {drops}",
        f"memory       frozen weights {frozen / 1e9:.2f} GB, trained part with optimizer {optimized / 1e6:.0f} MB, "
        f"mask decoder up to {0.045 * cfg.MODEL.MASK_DECODER.CHUNK:.1f} GB at 1024 px; other activations not measured",
        "weights      " + ", ".join(f"{name}: {source.file}" for name, source in trainer.sources.items()),
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes; exits with 2 after a user error."""
    args = parse_args(argv)
    logging.captureWarnings(True)
    # Detectron2 logs the traceback of whatever ends the loop; train() says in a line what it was
    loop = logging.getLogger("detectron2.engine.train_loop")
    loop.addHandler(logging.NullHandler())
    loop.propagate = False
    if args.num_gpus < 1:
        print(f"error: --num-gpus must be at least 1, got {args.num_gpus}", file=sys.stderr)
        sys.exit(2)
    try:
        launch(
            train,
            args=(args,),
            num_gpus=args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
        )
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last state in OUTPUT_DIR", file=sys.stderr)
        sys.exit(130)
    except ProcessExitedException as error:  # a process that was started here has said why
        sys.exit(error.exit_code)
