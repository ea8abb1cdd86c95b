"""The command line of tools/ablate.py."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from openworldsam.ablation.figures import draw_figures
from openworldsam.ablation.report import write_report
from openworldsam.ablation.runs import ADAPTER, VARIANTS, Experiment
from openworldsam.data.feature_cache import IMAGE_FEATURES
from openworldsam.engine.evaluate import RESULTS
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.utils.launch import say, user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train and score the paper's ablations, and write a report.")
    parser.add_argument("--config-file", default="configs/shapes/paper.yaml", help="of the full model, E5")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of all runs")
    names = ", ".join(VARIANTS)
    parser.add_argument("--runs", nargs="*", default=list(VARIANTS), choices=VARIANTS, metavar="NAME", help=names)
    parser.add_argument("--seeds", type=int, default=3, help="trainings per run, from the config's SEED on")
    parser.add_argument("--iterations", type=int, default=0, help="replaces SOLVER.MAX_ITER; SOLVER.STEPS are scaled")
    parser.add_argument("--benchmarks", nargs="+", default=["shapes_val"], metavar="NAME")
    features = "train from feature caches, built first; they hold no image features, or all of them"
    parser.add_argument("--feature-cache", choices=tuple(IMAGE_FEATURES), default="", help=features)
    parser.add_argument("--report", type=Path, default=Path("docs/shapes_ablation.md"), metavar="FILE")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw Fig. 3 and two-stage inference into DIR")
    parser.add_argument("--adapter", type=Path, help="adapter that the figures show; default: first E5 in --output")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys of all runs")
    return parser.parse_intermixed_args(argv)


def run_ablation(args: argparse.Namespace, command: str) -> None:
    """Do the runs that are missing, then draw the figures and write the report."""
    if args.seeds < 1 or args.iterations < 0:
        raise ValueError(f"need --seeds >= 1 and --iterations >= 0, got {args.seeds} and {args.iterations}")
    benchmarks, opts = tuple(args.benchmarks), tuple(args.opts)
    experiment = Experiment(args.config_file, args.output, benchmarks, opts, args.iterations, args.feature_cache)
    first = experiment.cfg.SEED
    adapter = args.adapter or experiment.run_folder("E5", first) / ADAPTER
    if args.figures and not adapter.exists() and (args.adapter or "E5" not in args.runs):
        raise ValueError(f"figures need a trained adapter, {adapter} does not exist; train E5 or give --adapter")
    work = [(name, seed) for seed in range(first, first + args.seeds) for name in args.runs]
    if args.feature_cache:
        experiment.build_caches(work)
    for number, (name, seed) in enumerate(work, start=1):
        print(f"run {number} of {len(work)}: {name}, seed {seed}", flush=True)
        experiment.run(name, seed)
    if args.figures:
        draw(experiment, adapter, args.figures)
    if list(args.output.glob(f"*/seed*/{RESULTS}")):  # there are none if only figures of an --adapter were drawn
        write_report(args.output, args.report, command)
        say(args.report)


def draw(experiment: Experiment, adapter: Path, folder: Path) -> None:
    """Draw the figures of a trained adapter, beside E1's single query if E1 was trained."""
    setup_logger(name="openworldsam")
    cfg = experiment.cfg
    cfg.OUTPUT_DIR = str(experiment.folder)
    model, single = OpenWorldSAMPredictor(cfg, opts=["MODEL.WEIGHTS", str(adapter)]).model, None
    alone = experiment.run_folder("E1", cfg.SEED) / ADAPTER
    if alone.exists():
        opts = [*experiment.options("E1", cfg.SEED), "MODEL.WEIGHTS", str(alone)]
        single = OpenWorldSAMPredictor(experiment.config_file, opts=opts).model
    name = "E5" if adapter.is_relative_to(experiment.folder) else adapter.as_posix()
    draw_figures(model, single, cfg, experiment.benchmarks, folder, name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 2 after a user error, 130 after Ctrl-C."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # also terminates the running subprocess
    words = sys.argv[1:] if argv is None else argv
    with user_errors("stopped; the same command continues"):
        run_ablation(args, shlex.join(["python", "tools/ablate.py", *words]))
