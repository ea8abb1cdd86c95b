"""HTML page about one evaluation or several side by side, from the output folders of openworldsam evaluate.

It shows: the scores beside the paper's; how reliable the models' own scores are, where openworldsam calibrate has
written into the same folders; images and benchmarks that were not scored, and why; IoU, AP and PQ of every class,
sorted; confusions of the worst classes; and pictures of image, ground truth and the prediction of every run, and of
other methods. Confusions and pictures need evaluations with --save-predictions, and the images at their original paths.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from openworldsam.evaluation.answer import Answer
from openworldsam.report import page
from openworldsam.report.calibration import calibration_html, read_calibration
from openworldsam.report.charts import class_bars, confusion_map, overview_bars, sorted_classes
from openworldsam.report.evaluations import (
    Evaluation,
    class_metrics,
    confusion,
    families,
    overview_scores,
    read_evaluations,
)
from openworldsam.report.html import Html, join, note, tag
from openworldsam.report.others import OtherMethod
from openworldsam.report.pictures import picture_rows
from openworldsam.utils.files import output_file, save_text
from openworldsam.utils.launch import say, user_errors

UNSAVED = Html("No pictures: none of the runs was evaluated with <code>--save-predictions</code>.")


def build_report(
    runs: Sequence[Evaluation],
    benchmarks: Sequence[str] | None = None,
    images: int = 4,
    others: Sequence[OtherMethod] = (),
) -> str:
    """Build the page, a self-contained HTML document with a column per run.

    It shows the benchmarks, by default all that any run was evaluated on, with `images` images of each and task, and
    draws the predictions of the others beside those of the runs.

    Raises:
        FileNotFoundError: an image is no longer at its original path.
        ValueError: no run was evaluated on one of the benchmarks, `images` is negative, names are not unique, or a
            prediction of another method is damaged or does not fit.
    """
    available = list(dict.fromkeys(name for run in runs for name in run.benchmarks))
    if unknown := set(benchmarks or ()) - set(available):
        raise ValueError(f"no run was evaluated on {', '.join(sorted(unknown))}; available: {', '.join(available)}")
    if images < 0:
        raise ValueError(f"--images must be at least 0, got {images}")
    names = [*(run.name for run in runs), *(other.name for other in others)]
    if len(set(names)) < len(names):
        raise ValueError(f"--others needs names that no run and no other method has, got {', '.join(names)}")
    shown = list(benchmarks or available)
    sections = [
        ("Runs", page.about_runs(runs)),
        ("Scores", join((page.scores(runs, shown), _overview(runs)))),
        *_calibrations(runs),
        ("Not scored, or to be noted", page.notes(runs, shown)),
    ]
    for family, members in families(shown).items():
        parts = [_classes(runs, members), *(_confusions(runs, name) for name in members)]
        parts += [_pictures(runs, name, images, others) for name in members]
        sections.append((family, join(parts, "\n")))
    return page.page("OpenWorldSAM: " + ", ".join(run.name for run in runs), sections)


def _overview(runs: Sequence[Evaluation]) -> Html:
    """Draw Fig. 2; empty if nothing can be compared with it."""
    if not (found := {run.name: scores for run in runs if (scores := overview_scores(run))}):
        return Html()
    title = "Fig. 2: six benchmarks, measured and in the paper"
    return join((tag("h3", title), page.figure_html(overview_bars(found), title)))


def _calibrations(runs: Sequence[Evaluation]) -> list[tuple[str, Html]]:
    """Show what openworldsam calibrate wrote into the folders of runs; no section if it wrote nothing."""
    found = [(run.name, content) for run in runs if (content := read_calibration(run.folder))]
    return [("Calibration", join(calibration_html(content, name) for name, content in found))] if found else []


def _classes(runs: Sequence[Evaluation], benchmarks: Sequence[str]) -> Html:
    """Show the metrics of every class as bars and as a table; empty for benchmarks without classes."""
    found = {run.name: metrics for run in runs if (metrics := class_metrics(run, benchmarks))}
    if not found:
        return Html()
    chart = page.figure_html(class_bars(found), f"Metrics of every class of {', '.join(benchmarks)}")
    return join((tag("h3", "Classes, best first"), chart, page.class_table(found, sorted_classes(found))))


def _confusions(runs: Sequence[Evaluation], benchmark: str) -> Html:
    parts = []
    for run in runs:
        saved = run.saved(benchmark)
        if saved and (found := confusion(saved)):
            title = f"Confusions of the worst classes: {benchmark}, {run.name}"
            said = note("Percentage of the pixels of each true class, lowest IoU first.")
            parts.append(join((tag("h3", title), said, page.figure_html(confusion_map(found), title))))
    return join(parts, "\n")


def _pictures(runs: Sequence[Evaluation], benchmark: str, images: int, others: Sequence[OtherMethod]) -> Html:
    if not any(run.saved(benchmark) for run in runs):
        return note(UNSAVED)
    found = {task: picture_rows(runs, benchmark, task, images, others) for task in Answer._fields}
    parts = [
        join((tag("h3", f"Pictures: {benchmark}, {task}"), page.picture_table(rows, task)))
        for task, rows in found.items()
        if rows
    ]
    return join(parts, "\n")


def run(args: argparse.Namespace) -> None:
    """Run the command; exit with status 2 after a user error."""
    with user_errors():
        output_file(args.output)  # an error before the work
        runs = read_evaluations(args.runs, args.names)
        others = [OtherMethod(*other) for other in args.others]
        if missing := next((other.folder for other in others if not other.folder.is_dir()), None):
            raise FileNotFoundError(f"{missing} is no folder of predictions; --others takes NAME=DIR")
        save_text(args.output, build_report(runs, args.benchmarks, args.images, others))
        say(args.output)
