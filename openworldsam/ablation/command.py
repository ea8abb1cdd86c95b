"""The command line of openworldsam ablate."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from openworldsam.ablation.figures import draw_figures
from openworldsam.ablation.jobs import Job, run_jobs
from openworldsam.ablation.record import DrawnFigure
from openworldsam.ablation.remaining import remaining
from openworldsam.ablation.report import conclusions, write_report
from openworldsam.ablation.results import compare, read_runs
from openworldsam.ablation.runs import ADAPTER, CLIP, VARIANTS, Experiment
from openworldsam.config import load_config
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.utils.launch import say, user_errors


def run_ablation(args: argparse.Namespace) -> None:
    """Do the runs that are missing, then draw the figures and write the report."""
    names = _variants_to_run(args.runs)
    for name, least in (("seeds", 1), ("workers", 1), ("iterations", 0)):
        if (value := getattr(args, name)) < least:
            raise ValueError(f"need --{name} >= {least}, got {value}")
    cfg = load_config(args.config, args.opts)
    benchmarks = tuple(args.benchmarks or cfg.DATASETS.TEST)
    experiment = Experiment(args.config, args.output, benchmarks, tuple(args.opts), args.iterations, args.feature_cache)
    adapter = args.adapter or experiment.run_folder("E5", cfg.SEED) / ADAPTER
    if args.figures and not adapter.exists() and (args.adapter or "E5" not in names):
        raise ValueError(f"figures need a trained adapter, {adapter} does not exist; train E5 or give --adapter")
    work = [(name, seed) for seed in range(cfg.SEED, cfg.SEED + args.seeds) for name in names]
    report = args.report or args.output / "report.md"
    if report.suffix != ".md":
        raise ValueError(f"--report {report} must be a .md file: the .json of the same name is its record")
    conclusions(report)
    if work:
        say(remaining(experiment, work, args.workers))
    settings = [(name, run.settings) for name, found in read_runs(args.output, report).items() for run in found]
    compare(args.output, report, [*settings, *((name, experiment.settings(name, seed)) for name, seed in work)])
    if args.dry_run:
        return

    def finished(job: Job) -> None:
        say(f"{job.title}: finished; {remaining(experiment, work, args.workers)}")

    if args.feature_cache:
        run_jobs(experiment.cache_jobs(work, args.workers), args.workers, finished)
    waiting = [experiment.job(*run) for run in work if not experiment.state(*run).finished]
    run_jobs(waiting, args.workers, finished)
    figures: list[DrawnFigure] = []
    try:
        if args.figures:
            figures = draw(experiment, adapter, args.figures)
    finally:
        if any(read_runs(args.output, report).values()):
            write_report(args.output, report, args.command, figures)
            say(report)
        else:  # only figures of an --adapter were drawn
            say(*(f"{figure.file}: {figure.caption}" for figure in figures))


def _variants_to_run(runs: list[str] | None) -> list[str]:
    """Return the variants to run, and those that they evaluate, in their order; by default all that can be run.

    Raises:
        ValueError: there is no such variant.
        FileNotFoundError: it needs the tiny CLIP.
    """
    trained = Path(CLIP, "model.safetensors").is_file()
    no_clip = [name for name, variant in VARIANTS.items() if CLIP in variant.opts and not trained]
    if runs is None:
        runs = [name for name in VARIANTS if name not in no_clip]
        if no_clip:
            say(f"without {' and '.join(no_clip)}: openworldsam pretrain clip makes the CLIP in {CLIP}")
    if unknown := [name for name in runs if name not in VARIANTS]:
        rows = ", ".join(name + (f" (of {variant.of})" if variant.of else "") for name, variant in VARIANTS.items())
        raise ValueError(f"--runs: there is no row {unknown[0]}; the rows are {rows}")
    if missing := [name for name in runs if name in no_clip]:
        raise FileNotFoundError(f"{missing[0]} needs {CLIP}, which openworldsam pretrain clip makes")
    asked = {*runs, *(VARIANTS[name].of for name in runs)}
    return [name for name in VARIANTS if name in asked]


def draw(experiment: Experiment, adapter: Path, folder: Path) -> list[DrawnFigure]:
    """Draw figures of a trained adapter, beside E1's single query if E1 was trained."""
    setup_logger(name="openworldsam")
    cfg = experiment.cfg
    cfg.OUTPUT_DIR = str(experiment.folder)
    model, single = OpenWorldSAMPredictor(cfg, opts=["MODEL.WEIGHTS", str(adapter)]).model, None
    alone = experiment.run_folder("E1", cfg.SEED) / ADAPTER
    if alone.exists():
        opts = [*experiment.options("E1", cfg.SEED), "MODEL.WEIGHTS", str(alone)]
        single = OpenWorldSAMPredictor(experiment.config_file, opts=opts).model
    name = "E5" if adapter == experiment.run_folder("E5", cfg.SEED) / ADAPTER else adapter.as_posix()
    return draw_figures(model, single, cfg, experiment.benchmarks, folder, name)


def run(args: argparse.Namespace) -> None:
    """Run the command; exit with status 2 after a user error, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # also ends the running jobs
    with user_errors("stopped; the same command continues"):
        run_ablation(args)
