"""A page about one evaluation or several side by side, from what tools/eval_net.py has written.

The scores beside the paper's; what was not scored, and why; for every class IoU, AP and PQ, sorted; what the worst
classes are taken for; and pictures: image, ground truth and the prediction of every run. Confusions and pictures need
evaluations with --save-predictions, and the images where these found them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from openworldsam.report import page
from openworldsam.report.charts import class_bars, confusion_map, sorted_classes
from openworldsam.report.pictures import TASKS, picture_rows
from openworldsam.report.runs import Run, class_metrics, confusion, families, read_runs
from openworldsam.utils.files import save_atomically
from openworldsam.utils.launch import user_errors

UNSAVED = "<p class='note'>No pictures: none of the runs was evaluated with <code>--save-predictions</code>.</p>"


def build_report(runs: Sequence[Run], benchmarks: Sequence[str] | None = None, images: int = 4) -> str:
    """The page.

    Args:
        runs: what is compared, in the order of the columns.
        benchmarks: those that are shown; by default all that any of them was evaluated on.
        images: pictures of each benchmark and task.

    Returns:
        HTML that needs no other file.

    Raises:
        FileNotFoundError: an image is not where the evaluation found it.
        ValueError: no run has one of the benchmarks, or a number below 0.
    """
    there = list(dict.fromkeys(name for run in runs for name in run.benchmarks))
    if unknown := set(benchmarks or ()) - set(there):
        raise ValueError(f"no run was evaluated on {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    if images < 0:
        raise ValueError(f"--images is 0 or more, got {images}")
    shown = list(benchmarks or there)
    sections = [
        ("Runs", page.about_runs(runs)),
        ("Scores", page.scores(runs, shown)),
        ("What is not in the figures", page.notes(runs, shown)),
    ]
    for family, names in families(shown).items():
        parts = [_classes(runs, names), *(_confusions(runs, name) for name in names)]
        parts += [_pictures(runs, name, images) for name in names]
        sections.append((family, "\n".join(parts)))
    return page.page("OpenWorldSAM: " + ", ".join(run.name for run in runs), sections)


def _classes(runs: Sequence[Run], benchmarks: Sequence[str]) -> str:
    """Bars and numbers of every class; nothing for expressions."""
    found = {run.name: metrics for run in runs if (metrics := class_metrics(run, benchmarks))}
    if not found:
        return ""
    classes = sorted_classes(found)
    chart = page.figure_html(class_bars(found), f"Bars of every class of {', '.join(benchmarks)}")
    return f"<h3>Classes, the best first</h3>{chart}{page.class_table(found, classes)}"


def _confusions(runs: Sequence[Run], benchmark: str) -> str:
    parts = []
    for run in runs:
        saved = run.saved(benchmark)
        found = confusion(saved) if saved else None
        if found:
            chart = page.figure_html(confusion_map(found), f"Confusion of the worst classes of {benchmark}, {run.name}")
            parts.append(f"<h3>{page.escape(f'What the worst classes are taken for: {benchmark}, {run.name}')}</h3>")
            parts.append(f"<p class='note'>Per cent of the pixels of each class, lowest IoU first.</p>{chart}")
    return "\n".join(parts)


def _pictures(runs: Sequence[Run], benchmark: str, images: int) -> str:
    if not any(run.saved(benchmark) for run in runs):
        return UNSAVED
    found = {task: picture_rows(runs, benchmark, task, images) for task in TASKS}
    return "\n".join(
        f"<h3>{page.escape(f'Pictures: {benchmark}, {task}')}</h3>{page.picture_table(rows, task)}"
        for task, rows in found.items()
        if rows
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 after a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, type=Path, metavar="DIR", help="--output of evaluations")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the runs on the page; default: their folders'")
    parser.add_argument("--benchmarks", nargs="+", metavar="NAME", help="default: all that a run was evaluated on")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="pictures per benchmark and task (4)")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.html")
    args = parser.parse_args(argv)
    with user_errors():
        text = build_report(read_runs(args.runs, args.names), args.benchmarks, args.images)
        save_atomically(args.output, lambda partial: partial.write_text(text, encoding="utf-8"))
        print(args.output)
