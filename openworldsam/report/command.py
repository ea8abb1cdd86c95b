"""HTML page about one evaluation or several side by side, from the output folders of tools/eval_net.py.

It shows: the scores beside the paper's; images and benchmarks that were not scored, and why; IoU, AP and PQ of every
class, sorted; confusions of the worst classes; and pictures of image, ground truth and the prediction of every run.
Confusions and pictures need evaluations with --save-predictions, and the images at their original paths.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from openworldsam.evaluation.answer import Answer
from openworldsam.report import page
from openworldsam.report.charts import class_bars, confusion_map, sorted_classes
from openworldsam.report.evaluations import Evaluation, class_metrics, confusion, families, read_evaluations
from openworldsam.report.pictures import picture_rows
from openworldsam.utils.files import save_text
from openworldsam.utils.launch import user_errors

UNSAVED = "<p class='note'>No pictures: none of the runs was evaluated with <code>--save-predictions</code>.</p>"


def build_report(runs: Sequence[Evaluation], benchmarks: Sequence[str] | None = None, images: int = 4) -> str:
    """Build the page, a self-contained HTML document with a column per run.

    It shows the benchmarks, by default all that any run was evaluated on, with `images` images of each and task.

    Raises:
        FileNotFoundError: an image is no longer at its original path.
        ValueError: no run was evaluated on one of the benchmarks, or `images` is negative.
    """
    available = list(dict.fromkeys(name for run in runs for name in run.benchmarks))
    if unknown := set(benchmarks or ()) - set(available):
        raise ValueError(f"no run was evaluated on {', '.join(sorted(unknown))}; available: {', '.join(available)}")
    if images < 0:
        raise ValueError(f"--images must be at least 0, got {images}")
    shown = list(benchmarks or available)
    sections = [
        ("Runs", page.about_runs(runs)),
        ("Scores", page.scores(runs, shown)),
        ("Not scored, or to be noted", page.notes(runs, shown)),
    ]
    for family, names in families(shown).items():
        parts = [_classes(runs, names), *(_confusions(runs, name) for name in names)]
        parts += [_pictures(runs, name, images) for name in names]
        sections.append((family, "\n".join(parts)))
    return page.page("OpenWorldSAM: " + ", ".join(run.name for run in runs), sections)


def _classes(runs: Sequence[Evaluation], benchmarks: Sequence[str]) -> str:
    """Show the metrics of every class as bars and as a table; empty for benchmarks without classes."""
    found = {run.name: metrics for run in runs if (metrics := class_metrics(run, benchmarks))}
    if not found:
        return ""
    chart = page.figure_html(class_bars(found), f"Metrics of every class of {', '.join(benchmarks)}")
    return f"<h3>Classes, best first</h3>{chart}{page.class_table(found, sorted_classes(found))}"


def _confusions(runs: Sequence[Evaluation], benchmark: str) -> str:
    parts = []
    for run in runs:
        saved = run.saved(benchmark)
        if saved and (found := confusion(saved)):
            title = f"Confusions of the worst classes: {benchmark}, {run.name}"
            note = "<p class='note'>Percentage of the pixels of each true class, lowest IoU first.</p>"
            parts.append(f"<h3>{page.escape(title)}</h3>{note}{page.figure_html(confusion_map(found), title)}")
    return "\n".join(parts)


def _pictures(runs: Sequence[Evaluation], benchmark: str, images: int) -> str:
    if not any(run.saved(benchmark) for run in runs):
        return UNSAVED
    found = {task: picture_rows(runs, benchmark, task, images) for task in Answer._fields}
    return "\n".join(
        f"<h3>{page.escape(f'Pictures: {benchmark}, {task}')}</h3>{page.picture_table(rows, task)}"
        for task, rows in found.items()
        if rows
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 2 after a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, type=Path, metavar="DIR", help="outputs of eval_net.py")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names on the page; default: those of the folders")
    parser.add_argument("--benchmarks", nargs="+", metavar="NAME", help="default: all that a run was evaluated on")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="images per benchmark and task (4)")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.html")
    args = parser.parse_args(argv)
    with user_errors():
        save_text(args.output, build_report(read_evaluations(args.runs, args.names), args.benchmarks, args.images))
        print(args.output)
