"""The command line of tools/ablate.py."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from openworldsam.ablation.figures import draw_figures, load_model
from openworldsam.ablation.report import write_report
from openworldsam.ablation.runs import ADAPTER, VARIANTS, Experiment
from openworldsam.config import load_config
from openworldsam.data.feature_cache import IMAGE_FEATURES
from openworldsam.engine.evaluate import RESULTS
from openworldsam.utils.launch import user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train and score the variants of the paper's ablations, and report.")
    parser.add_argument("--config-file", default="configs/shapes/openworldsam.yaml", help="of the full model, E5")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="gets all runs")
    names = ", ".join(VARIANTS)
    parser.add_argument("--runs", nargs="*", default=list(VARIANTS), choices=VARIANTS, metavar="NAME", help=names)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each, from the config's SEED on")
    parser.add_argument("--iterations", type=int, default=0, help="in place of SOLVER.MAX_ITER; STEPS go with it")
    parser.add_argument("--benchmarks", nargs="+", default=["shapes_val"], metavar="NAME")
    features = "train from caches, made first, that hold besides prompts no image features or all"
    parser.add_argument("--feature-cache", choices=tuple(IMAGE_FEATURES), default="", help=features)
    parser.add_argument("--report", type=Path, default=Path("docs/shapes_ablation.md"), metavar="FILE")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw Fig. 3 and two-stage inference there")
    parser.add_argument("--adapter", type=Path, help="what the figures are of, in place of the first E5 in --output")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="override config keys of all runs")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace, command: str) -> None:
    """Make the runs that are missing, then draw and write."""
    if args.seeds < 1 or args.iterations < 0:
        raise ValueError(f"--seeds is 1 or more and --iterations 0 or more, got {args.seeds} and {args.iterations}")
    where = (args.config_file, args.output, tuple(args.benchmarks), tuple(args.opts))
    experiment = Experiment(*where, args.iterations, args.feature_cache)
    first = experiment.cfg.SEED
    adapter = args.adapter or experiment.run_folder("E5", first) / ADAPTER
    if args.figures and not adapter.exists() and (args.adapter or "E5" not in args.runs):
        raise ValueError(f"the figures need a trained adapter: {adapter} is not there")
    work = [(name, seed) for seed in range(first, first + args.seeds) for name in args.runs]
    if args.feature_cache:
        experiment.build_caches(work)
    for number, (name, seed) in enumerate(work, start=1):
        print(f"run {number} of {len(work)}: {name}, seed {seed}", flush=True)
        experiment.run(name, seed)
    if args.figures:
        draw(experiment, adapter, args.figures)
    if list(args.output.glob(f"*/seed*/{RESULTS}")):  # figures of weights that ship need none
        write_report(args.output, args.report, command)
        print(args.report)


def draw(experiment: Experiment, adapter: Path, folder: Path) -> None:
    """Draw the figures of a trained adapter; E1's single query beside it if that was trained."""
    setup_logger(name="openworldsam")
    cfg = experiment.cfg
    alone = experiment.run_folder("E1", cfg.SEED) / ADAPTER
    single = None
    if alone.exists():
        single = load_model(load_config(experiment.config_file, experiment.options("E1", cfg.SEED)), alone)
    cfg.OUTPUT_DIR = str(experiment.folder)
    called = "E5" if adapter.is_relative_to(experiment.folder) else adapter.as_posix()
    draw_figures(load_model(cfg, adapter), single, cfg, experiment.benchmarks[0], folder, called)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with 2 after a user error, with 130 after Ctrl-C."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the run that it waits for
    words = sys.argv[1:] if argv is None else argv
    with user_errors("stopped; the same command goes on"):
        run(args, shlex.join(["python", "tools/ablate.py", *words]))
