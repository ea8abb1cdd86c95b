"""Plots of the ablation's results: scores of every variant, and recall by the number of equal things."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openworldsam.ablation.record import Runs
from openworldsam.ablation.results import COMPARED, PAPER, Spread, spread
from openworldsam.ablation.runs import VARIANTS
from openworldsam.evaluation.metrics.instance import RECALL
from openworldsam.utils.files import save_atomically

OURS, THEIRS = "#0072b2", "#666666"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888", "#882255")
"""Colours that the colour-blind tell apart: Okabe and Ito's, grey, and wine."""
STYLES = cycler(ls=("-", "--")) * (cycler(color=LINES) + cycler(marker="osD^vPX<>"))
"""Styles of the lines of one plot: every colour with a marker of its own, then once more, dashed."""
FULL = "E5"
"""The variant that all others are compared with."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    save_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120))


def in_words(name: str) -> str:
    """Describe a variant."""
    return f"{VARIANTS[name].title.replace('`', '')} ({name})"


def recall_label(metric: str) -> str:
    """Return the number of equal things that a metric of `RECALL` is about."""
    return metric.removeprefix("recall_of_").replace("_", " ")


def recall_metrics(runs: Runs, benchmark: str) -> list[str]:
    """List the metrics of `RECALL` that a benchmark has things for."""
    return [m for m in RECALL if any(spread(found, benchmark, m) for found in runs.values())]


def score_plot(runs: Runs, benchmarks: Sequence[str]) -> Figure:
    """Draw the scores of all variants: a row of panels per metric; columns for the paper and each benchmark."""
    names = [name for name in VARIANTS if runs[name] or name in PAPER]
    columns, rows = 1 + len(benchmarks), len(COMPARED)
    figure = Figure(figsize=(2.4 + 1.7 * columns, 0.6 + (0.4 + 0.32 * len(names)) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, metric in zip(grid, COMPARED, strict=True):
        paper = {name: row.scores.get(metric) for name, row in PAPER.items()}
        theirs = [None if (value := paper.get(name)) is None else Spread(value, None) for name in names]
        _dots(axes[0], theirs, THEIRS)
        for axis, benchmark in zip(axes[1:], benchmarks, strict=True):
            _dots(axis, [spread(runs[name], benchmark, metric) for name in names], OURS)
            full = spread(runs[FULL], benchmark, metric)
            if full and full.std is not None:
                axis.axvspan(full.mean - full.std, full.mean + full.std, color=OURS, alpha=0.15, linewidth=1)
        axes[0].set_yticks(range(len(names)), [textwrap.fill(in_words(name), 30) for name in names], fontsize=8)
        axes[0].set_ylabel(metric, fontsize=11, fontweight="bold")
    for axis, title in zip(grid[0], ("the paper, ADE20K-150", *benchmarks), strict=True):
        axis.set_title(title, fontsize=10)
    words = "Mean and sample standard deviation over seeds (hollow: one value); each panel has its own scale."
    figure.supxlabel(f"{words} Blue band: the full model ({FULL}).", fontsize=9)
    return figure


def _dots(axis: Axes, values: Sequence[Spread | None], colour: str) -> None:
    """Draw a row of a dot, its error bar and its value per variant, the first one on top; hollow without a spread."""
    for row, value in enumerate(values):
        if value:
            error, inside = (None, "white") if value.std is None else ([value.std], colour)
            axis.errorbar([value.mean], [row], xerr=error, fmt="o", ms=5, mfc=inside, capsize=3, color=colour)
            text, offset = f"{value.mean:.1f}", (0, 4)
            axis.annotate(text, (value.mean, row), offset, textcoords="offset points", ha="center", fontsize=8)
    axis.set_ylim(len(values) - 0.5, -0.7)
    axis.set_yticks(range(len(values)), [])
    axis.margins(x=0.15)
    axis.grid(axis="y", color="#dddddd")
    axis.set_axisbelow(True)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)


def recall_plot(runs: Runs, benchmarks: Sequence[str]) -> Figure:
    """Draw recall against the number of equal things: a panel per benchmark, a line with error bars per variant."""
    names = [name for name in VARIANTS if runs[name]]
    figure = Figure(figsize=(max(6, 0.6 + 2.8 * len(benchmarks)), 3.2 + 0.12 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(benchmarks), squeeze=False, sharey=True)[0]
    for axis, benchmark in zip(axes, benchmarks, strict=True):
        metrics = recall_metrics(runs, benchmark)
        for index, (name, style) in enumerate(zip(names, cycle(STYLES), strict=False)):
            values = [spread(runs[name], benchmark, metric) for metric in metrics]
            shift = 0.3 * ((index + 0.5) / len(names) - 0.5)  # shows error bars side by side
            points = [(place + shift, *value) for place, value in enumerate(values) if value]
            x, mean, std = zip(*points, strict=True) if points else ((), (), ())
            errors, label = [each or 0 for each in std], in_words(name)
            weight = {"lw": 2.5, "zorder": 3} if name == FULL else {"lw": 1}
            axis.errorbar(x, mean, errors, ms=4.5, capsize=2, label=label, **style, **weight)
        axis.set_xticks(range(len(metrics)), [recall_label(m).replace("or ", "or\n") for m in metrics])
        axis.set_xlabel("things of one class in the image", fontsize=9)
        axis.set_title(benchmark, fontsize=10)
        axis.grid(axis="y", color="#dddddd")
    axes[0].set_ylim(0, 105)
    axes[0].set_ylabel("recall of one of them (%)", fontsize=9)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(2, len(benchmarks)), fontsize=8, frameon=False)
    return figure
