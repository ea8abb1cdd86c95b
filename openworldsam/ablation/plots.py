"""Plots of the ablation, drawn by matplotlib without a display.

Shapes: K tie-breakers, n cells along each side of a heat map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openworldsam.ablation.observations import Closeup
from openworldsam.utils.files import save_atomically

OURS, THEIRS = "#0072b2", "#bbbbbb"
BEFORE, AFTER, TRUTH = "#d55e00", "#009e73", "white"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    save_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120))


def bar_plot(
    spreads: Mapping[str, Mapping[str, Mapping[str, Any]]], paper: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Draw the scores of all variants, with a row of panels per benchmark and a panel per metric.

    Args:
        spreads: a `Spread` by benchmark, metric and variant; None if the variant was not run.
        paper: the paper's numbers by variant and metric.
        path: PNG to write.
    """
    metrics = list(next(iter(spreads.values())))
    figure = Figure(figsize=(4.2 * len(metrics), 3.2 * len(spreads)), layout="constrained")
    axes = figure.subplots(len(spreads), len(metrics), squeeze=False)
    for row, (benchmark, by_metric) in zip(axes, spreads.items(), strict=True):
        for axis, (metric, by_variant) in zip(row, by_metric.items(), strict=True):
            names = list(by_variant)
            ours = {names.index(name): value for name, value in by_variant.items() if value}
            theirs = {names.index(name): scores[metric] for name, scores in paper.items()}
            axis.bar([x + 0.2 for x in theirs], list(theirs.values()), 0.4, color=THEIRS, label="paper, ADE-150")
            deviations = [value.std or 0 for value in ours.values()]
            places, means = [x - 0.2 for x in ours], [value.mean for value in ours.values()]
            axis.bar(places, means, 0.4, yerr=deviations, capsize=3, color=OURS, label=f"here, {benchmark}")
            axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axis.set_ylim(0, 100)
            axis.set_title(metric)
    for row in axes:
        row[0].legend()
    save_figure(figure, path)


def heat_maps(maps: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Draw one heat map per tie-breaker, on a common colour scale.

    Args:
        maps: [K, n, n], share of a tie-breaker's masks in each cell.
        titles: K titles.
        path: PNG to write.
    """
    figure, axes = _grid(len(maps), 5, (2.2, 2.4))
    for axis, values, title in zip(axes, maps, titles, strict=False):
        axis.imshow(values, cmap="magma", vmin=0, vmax=maps.max() or 1)
        axis.set_title(title, fontsize=9)
    save_figure(figure, path)


def contours(closeups: Sequence[Closeup], path: Path) -> None:
    """Draw things with their outlines before and after the second stage, titled with the IoUs of both stages."""
    figure, axes = _grid(len(closeups), 3, (3.4, 3.8))
    for axis, shown in zip(axes, closeups, strict=False):
        axis.imshow(shown.image)
        for values, colour in ((shown.truth - 0.5, TRUTH), (shown.before, BEFORE), (shown.after, AFTER)):
            if values.min() < 0 < values.max():
                axis.contour(values, levels=[0], colors=[colour], linewidths=1.5)
        iou, new_iou, score, new_score = (100 * value for value in shown.stages)
        axis.set_title(f"IoU {iou:.0f} to {new_iou:.0f}, predicted {score:.0f} to {new_score:.0f}", fontsize=9)
    figure.suptitle("white: ground truth, orange: first stage, green: second stage", fontsize=9)
    save_figure(figure, path)


def _grid(count: int, most_columns: int, size: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure of `count` panels without axis lines, each of (width, height) inches."""
    columns = min(most_columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes:
        axis.axis("off")
    return figure, axes
