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
from openworldsam.ablation.jobs import Job, run_jobs
from openworldsam.ablation.remaining import remaining
from openworldsam.ablation.report import write_report
from openworldsam.ablation.runs import ADAPTER, VARIANTS, Experiment
from openworldsam.config import load_config
from openworldsam.data.feature_cache import IMAGE_FEATURES
from openworldsam.engine.evaluate import RESULTS
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.utils.launch import say, user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train and score the paper's ablations, and write a report.")
    parser.add_argument("--config-file", default="configs/shapes/ablation.yaml", help="of the full model, E5")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of all runs")
    names = ", ".join(name + (f" (of {variant.of})" if variant.of else "") for name, variant in VARIANTS.items())
    chosen = f"default: all; a variant of another only evaluates its adapters and brings its runs along: {names}"
    parser.add_argument("--runs", nargs="*", default=list(VARIANTS), choices=VARIANTS, metavar="NAME", help=chosen)
    parser.add_argument("--seeds", type=int, default=3, help="trainings per run, from the config's SEED on")
    parser.add_argument("--iterations", type=int, default=0, help="replaces SOLVER.MAX_ITER; SOLVER.STEPS are scaled")
    parser.add_argument("--benchmarks", nargs="+", default=[], metavar="NAME", help="default: DATASETS.TEST")
    workers = "runs at a time, which share cores and GPUs; best one per core"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=workers)
    parser.add_argument("--dry-run", action="store_true", help="say what remains and how long, without running it")
    features = "train from feature caches, built first; they hold no image features, or all of them"
    parser.add_argument("--feature-cache", choices=tuple(IMAGE_FEATURES), default="", help=features)
    parser.add_argument("--report", type=Path, default=Path("docs/shapes_ablation.md"), metavar="FILE")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw Fig. 3 and two-stage inference into DIR")
    parser.add_argument("--adapter", type=Path, help="adapter that the figures show; default: first E5 in --output")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys of all runs")
    return parser.parse_intermixed_args(argv)


def run_ablation(args: argparse.Namespace, command: str) -> None:
    """Do the runs that are missing, then draw the figures and write the report."""
    for name, least in (("seeds", 1), ("workers", 1), ("iterations", 0)):
        if (value := getattr(args, name)) < least:
            raise ValueError(f"need --{name} >= {least}, got {value}")
    cfg = load_config(args.config_file, args.opts)
    benchmarks = tuple(args.benchmarks or cfg.DATASETS.TEST)
    experiment = Experiment(
        args.config_file, args.output, benchmarks, tuple(args.opts), args.iterations, args.feature_cache
    )
    adapter = args.adapter or experiment.run_folder("E5", cfg.SEED) / ADAPTER
    asked = {*args.runs, *(VARIANTS[name].of for name in args.runs)}
    if args.figures and not adapter.exists() and (args.adapter or "E5" not in asked):
        raise ValueError(f"figures need a trained adapter, {adapter} does not exist; train E5 or give --adapter")
    names = [name for name in VARIANTS if name in asked]
    work = [(name, seed) for seed in range(cfg.SEED, cfg.SEED + args.seeds) for name in names]
    if work:
        say(remaining(experiment, work, args.workers))
    if args.dry_run:
        return

    def finished(job: Job) -> None:
        say(f"{job.title}: finished; {remaining(experiment, work, args.workers)}")

    if args.feature_cache:
        run_jobs(experiment.cache_jobs(work, args.workers), args.workers, finished)
    waiting = [experiment.job(*run) for run in work if not experiment.state(*run).finished]
    run_jobs(waiting, args.workers, finished)
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
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # also ends the running jobs
    words = sys.argv[1:] if argv is None else argv
    with user_errors("stopped; the same command continues"):
        run_ablation(args, shlex.join(["python", "tools/ablate.py", *words]))
