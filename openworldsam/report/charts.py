"""Charts of the page, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from openworldsam.evaluation.paper_tables import PAPER_TABLES
from openworldsam.inference import SCORES
from openworldsam.report.evaluations import CLASS_METRICS, OVERVIEW, ClassMetrics, Confusion

MOST_BARS = 60
"""Most classes in a chart; of more classes, the best and the worst half of this number are shown."""
PAPER_COLOURS = {"paper: OpenWorldSAM": "#444444", "paper: X-Decoder (L)": "#bbbbbb"}
"""Colours of the paper's rows in Fig. 2."""
RUN_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
"""Colours of the runs in turn (Okabe and Ito's palette)."""


def sorted_classes(runs: Mapping[str, ClassMetrics]) -> list[str]:
    """Sort all classes that have a value, best first, by the first metric of the first run that has one.

    Classes without this value follow, sorted by the first value they do have.
    """
    ranks: dict[str, tuple[int, float]] = {}
    for place, (metric, run) in enumerate((metric, run) for metric in CLASS_METRICS for run in runs.values()):
        for c, value in run.get(metric, {}).items():
            ranks.setdefault(c, (place, -value))
    return sorted(ranks, key=lambda c: (*ranks[c], c))


def class_bars(runs: Mapping[str, ClassMetrics]) -> Figure:
    """Draw a bar per class and run (by name; at least one has a value), one panel per metric, best first (Fig. 9)."""
    classes = sorted_classes(runs)
    half = MOST_BARS // 2
    shown = classes if len(classes) <= MOST_BARS else [*classes[:half], *classes[-half:]]
    metrics = [metric for metric in CLASS_METRICS if any(metric in run for run in runs.values())]
    figure = Figure(figsize=(max(6.0, 1.5 + 0.24 * len(shown)), 1.9 * len(metrics) + 1.3), layout="constrained")
    axes = figure.subplots(len(metrics), 1, squeeze=False, sharex=True)[:, 0]
    width = 0.8 / len(runs)
    for axis, metric in zip(axes, metrics, strict=True):
        for index, (name, run) in enumerate(runs.items()):
            values = {place: run.get(metric, {}).get(c) for place, c in enumerate(shown)}
            known = {place - 0.4 + width * (index + 0.5): value for place, value in values.items() if value is not None}
            color = RUN_COLOURS[index % len(RUN_COLOURS)]
            axis.bar(list(known), list(known.values()), width, color=color, label=_plain(name))
        axis.set(ylim=(0, 100), ylabel=metric, xlim=(-0.6, len(shown) - 0.4))
        for place, c in enumerate(shown):  # not to be taken for a bar of 0
            if all(run.get(metric, {}).get(c) is None for run in runs.values()):
                axis.text(place, 1, "n/a", rotation=90, ha="center", va="bottom", fontsize=6, color="#666666")
        axis.grid(axis="y", linewidth=0.4)
        axis.set_axisbelow(True)
        if len(shown) < len(classes):
            axis.axvline(half - 0.5, color="black", linestyle=":", linewidth=1)
    axes[-1].set_xticks(range(len(shown)), [_short(c) for c in shown], rotation=90, fontsize=8)
    if len(runs) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    return figure


def overview_bars(runs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the mIoU of runs (by name and benchmark) beside the paper's, in groups of `OVERVIEW` (Fig. 2)."""
    columns, rows = PAPER_TABLES[1]
    published = {
        name: {column[0]: value for column, value in zip(columns, rows[name.removeprefix("paper: ")], strict=True)}
        for name in PAPER_COLOURS
    }
    figure = Figure(figsize=(11, 4), layout="constrained")
    axis = figure.subplots()
    series = {**runs, **published}
    width = 0.8 / len(series)
    for index, (name, scores) in enumerate(series.items()):
        places = {place - 0.4 + width * (index + 0.5): scores.get(b) for place, b in enumerate(OVERVIEW)}
        known = {place: value for place, value in places.items() if value is not None}
        color = PAPER_COLOURS.get(name, RUN_COLOURS[index % len(RUN_COLOURS)])
        bars = axis.bar(list(known), list(known.values()), width, color=color, label=_plain(name))
        axis.bar_label(bars, fmt="%.1f", fontsize=7)
    axis.set_xticks(range(len(OVERVIEW)), [name.removesuffix("_val") for name in OVERVIEW])
    axis.set(ylim=(0, 100), ylabel="mIoU")
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return figure


def confusion_map(found: Confusion) -> Figure:
    """Draw a confusion table with the percentages in its cells."""
    rows, columns = len(found.rows), len(found.columns)
    figure = Figure(figsize=(2.4 + 0.42 * columns, 1.7 + 0.32 * rows), layout="constrained")
    axis = figure.subplots()
    axis.imshow(found.percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row in range(rows):
        for column in range(columns):
            value = found.percent[row, column]
            if value >= 0.5:
                ink = "white" if value > 55 else "black"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ink)
    axis.axvline(rows - 0.5, color="black", linewidth=0.8)
    axis.set_xticks(range(columns), [_short(c) for c in found.columns], rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(rows), [_short(c) for c in found.rows], fontsize=8)
    axis.set(xlabel="predicted class", ylabel="true class")
    return figure


def reliability(scores: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a reliability diagram and the numbers of right and wrong queries for each score; see `read_calibration`."""
    figure = Figure(figsize=(4.2 * len(scores), 6.4), layout="constrained")
    for column, (rule, found) in zip(figure.subplots(2, len(scores), squeeze=False).T, scores.items(), strict=True):
        bins = found["bins"]
        known = [each for each in bins if each["queries"]]
        columns = {key: [each[key] for each in known] for key in ("score", "iou")}
        column[0].plot([0, 1], [0, 1], color="#999999", linewidth=1)
        column[0].plot(columns["score"], columns["iou"], "o-", color=RUN_COLOURS[0], label="mean IoU")
        shares = [each["right"] / each["queries"] for each in known]
        column[0].plot(columns["score"], shares, "s--", color=RUN_COLOURS[1], label="share of right masks")
        column[0].set(title=f"{SCORES[rule]}: ECE {found['ece']:.3f}", xlim=(0, 1), ylim=(0, 1))
        column[0].legend(frameon=False)
        places = [(place + 0.5) / len(bins) for place in range(len(bins))]
        right = [each["right"] for each in bins]
        wrong = [each["queries"] - each["right"] for each in bins]
        column[1].bar(places, right, 1 / len(bins), color=RUN_COLOURS[2], label="right")
        column[1].bar(places, wrong, 1 / len(bins), bottom=right, color=RUN_COLOURS[5], label="wrong")
        column[1].set(xlabel=SCORES[rule], ylabel="queries", xlim=(0, 1))
        if found["threshold"] is not None:
            column[1].axvline(
                found["threshold"], color="black", linestyle=":", label=f"threshold {found['threshold']:g}"
            )
        column[1].legend()
    return figure


def _short(name: str) -> str:
    """Shorten a class name to its first synonym, and that to 22 characters."""
    first = name.split(",")[0]
    return _plain(first if len(first) <= 22 else f"{first[:20]}...")


def _plain(text: str) -> str:
    """Keep matplotlib from reading formulas."""
    return text.replace("$", r"\$")
