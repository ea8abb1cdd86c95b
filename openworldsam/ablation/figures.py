"""Draws Fig. 3 and the effect of two-stage inference from a trained adapter.

Shapes: K tie-breakers, n masks, H, W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from openworldsam.ablation.observations import (
    Equal,
    Observations,
    decode_things,
    distinct,
    full_size,
    observe,
    pair_iou,
    specialisation,
    true_things,
)
from openworldsam.ablation.plots import LINES, save_figure
from openworldsam.ablation.record import DrawnFigure
from openworldsam.data.datasets.catalog import load_records
from openworldsam.evaluation.examples import EvaluationDataset, Example
from openworldsam.evaluation.metrics.instance import FOUND
from openworldsam.modeling import OpenWorldSAM
from openworldsam.visualization import pole_of_inaccessibility

BINS = 10
"""Cells along each side of a heat map."""
CROWDS = "shapes_crowd_val"
"""The benchmark that the figures show if it was scored; otherwise the first."""
TITLES = (
    "Several things of one class (Fig. 3b and c)",
    "Mask centres of each tie-breaker (Fig. 3b)",
    "Two-stage inference (Sec. 3, Sec. B)",
)
COLOURS = LINES[:6]
"""Outlines of things, and of the masks of tie-breakers; without black and grey, which Shapes have."""
BEFORE, AFTER, TRUTH = "#d55e00", "#009e73", "white"
"""Outlines of the first stage, the second stage and the ground truth."""


def draw_figures(
    model: OpenWorldSAM,
    single: OpenWorldSAM | None,
    cfg: CfgNode,
    benchmarks: Sequence[str],
    folder: Path,
    adapter: str = "E5",
) -> list[DrawnFigure]:
    """Draw equal_shapes.png, tie_breakers.png and two_stage.png; return them in this order.

    Args:
        model, single: with tie-breakers; without (E1), if that was trained.
        cfg: config of `model`.
        benchmarks: registered datasets, of one of which the first TEST.MAX_IMAGES are used.
        folder: gets the pictures.
        adapter: name of the model's adapter in the captions.

    Raises:
        ValueError: no image of the dataset has several things of one class.
    """
    name = CROWDS if CROWDS in benchmarks else benchmarks[0]
    metadata, records = MetadataCatalog.get(name), load_records(name)
    dataset = EvaluationDataset(records, class_names=metadata.vocabulary, is_thing=metadata.is_thing)
    images = cfg.TEST.MAX_IMAGES or len(records)
    paths = [folder / f"{stem}.png" for stem in ("equal_shapes", "tie_breakers", "two_stage")]
    seen = observe(model, dataset, images)
    about = f"the first {images:,} images of {name} (weights: {adapter})"
    one = [("one query (E1 of the runs)", single)] if single else []
    models = [*one, (f"{model.adapter.num_queries} tie-breakers", model)]
    words = [_equal_things(seen, models, dataset, about, paths[0])]
    words.append(_tie_breakers(seen, model.inference.score_threshold, about, paths[1]))
    if seen.found:
        words.append(_two_stage(seen, about, paths[2]))
    # no third one if no thing was found
    return [DrawnFigure(str(path), title, each) for path, title, each in zip(paths, TITLES, words, strict=False)]


def _equal_things(
    seen: Observations,
    models: Sequence[tuple[str, OpenWorldSAM]],
    dataset: EvaluationDataset,
    about: str,
    path: Path,
) -> str:
    """Draw Fig. 3b and c, several things of one class prompted with one query and with K, where it works and where it
    does not; return the caption."""
    if not seen.equal:
        raise ValueError(f"none of {about} has several things of one class to draw")
    works = [equal for equal in seen.equal if equal.found == equal.things]
    fails = [equal for equal in seen.equal if equal.found < equal.things]
    best = [("The most equal things that are all found", max(works, key=lambda equal: equal.things))] if works else []
    worst = [("The most missed", max(fails, key=lambda equal: equal.things - equal.found))] if fails else []
    figure, axes = _grid((len(best + worst), 1 + len(models)), (3, 3.2))
    words = [f"From {about}, chosen by the last column; dashed: missed things."]
    words += [] if best else ["No image has several equal things that are all found."]
    for row, (why, scene) in zip(axes, best + worst, strict=True):
        words.append(f"{why}: {_scene(row, scene, models, dataset)}")
    save_figure(figure, path)
    return " ".join(words)


def _scene(
    axes: Sequence[Axes], scene: Equal, models: Sequence[tuple[str, OpenWorldSAM]], dataset: EvaluationDataset
) -> str:
    """Draw an image's things of one class, and the masks of each model in a panel; return the numbers in words."""
    example = dataset[scene.image]
    assert isinstance(example, Example)
    prompt, size = dataset.class_names[scene.class_id], (example.inputs["height"], example.inputs["width"])
    true = [mask for class_id, mask in true_things(example) if class_id == scene.class_id]
    counts = []
    for axis in axes:
        axis.imshow(example.inputs["image"].permute(1, 2, 0).numpy())
    for n, mask in enumerate(true):
        _outline(axes[0], mask, COLOURS[n % len(COLOURS)])
    axes[0].set_title(f'{len(true)} things: "{prompt}"', fontsize=10)
    for axis, (who, model) in zip(axes[1:], models, strict=True):
        _, queries = decode_things(model, example)
        kept = distinct(model, queries, size)
        kept = kept[queries.labels[kept] == scene.class_id]
        masks = full_size(queries.select(kept).logits, size) > 0
        missed = [thing for thing in true if not any(pair_iou(mask, thing) > FOUND for mask in masks)]
        for query, mask in zip(kept.tolist(), masks, strict=True):
            k = query % model.adapter.num_queries
            _outline(axis, mask, COLOURS[k % len(COLOURS)], str(k) if model.adapter.num_queries > 1 else "")
        for thing in missed:
            _outline(axis, thing, "white", dashed=True)
        found = len(true) - len(missed)
        axis.set_title(f"{who}: {found} found", fontsize=10)
        counts.append(f"{who}: {len(masks)} distinct confident masks, {found} of the things found")
    return f'{len(true)} of the class "{prompt}" in {example.inputs["file_name"]}; {"; ".join(counts)}.'


def _outline(axis: Axes, mask: np.ndarray, colour: str, text: str = "", *, dashed: bool = False) -> None:
    """Draw the outline of a mask, bool [H, W], tinted inside and with a text unless it is dashed."""
    if not dashed:
        axis.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.45)
        x, y = pole_of_inaccessibility(mask)
        halo = [withStroke(linewidth=2, foreground="black")]
        axis.text(x, y, text, color="white", fontsize=9, ha="center", va="center", path_effects=halo)
    axis.contour(mask, levels=[0.5], colors=[colour], linewidths=1.5, linestyles="dashed" if dashed else "solid")


def _tie_breakers(seen: Observations, threshold: float, about: str, path: Path) -> str:
    """Draw Fig. 3b over a split, a heat map of mask centres for each tie-breaker; return the caption."""
    counts = [len(centres) for centres in seen.centres]
    points = [np.reshape(centres, (-1, 2)) for centres in seen.centres]
    maps = [np.histogram2d(xy[:, 1], xy[:, 0], BINS, [(0, 1), (0, 1)])[0] / max(1, len(xy)) for xy in points]
    figure, axes = _grid(_shape(len(maps), 5), (1.8, 1.95))
    for k, (axis, heat) in enumerate(zip(axes.flat, maps, strict=False)):
        axis.imshow(heat, cmap="magma", vmin=0, vmax=np.max(maps) or 1)  # one colour scale
        axis.set_title(f"tie-breaker {k}: {counts[k]:,} masks", fontsize=9)
    save_figure(figure, path)
    words = (
        f"Centres of the {sum(counts):,} thing masks with a score of at least {threshold:g} on {about}, duplicates "
        f"included; {sum(count > 0 for count in counts)} of {len(counts)} tie-breakers have any."
    )
    if (share := specialisation(seen.centres)) is not None:
        words += (
            f" The tie-breaker explains {100 * share:.0f} % of the variance of the centres (0 %: all cover the same "
            "places; 100 %: each has one place of its own)."
        )
    return words


def _two_stage(seen: Observations, about: str, path: Path) -> str:
    """Draw contours and scores before and after the second stage (paper Sec. 3, Sec. B); return the caption."""
    figure, axes = _grid(_shape(len(seen.closeups), 3), (3, 3.3))
    for axis, shown in zip(axes.flat, seen.closeups, strict=False):
        axis.imshow(shown.image)
        for values, colour in ((shown.truth - 0.5, TRUTH), (shown.before, BEFORE), (shown.after, AFTER)):
            if values.min() < 0 < values.max():
                axis.contour(values, levels=[0], colors=[colour], linewidths=1.5)
        iou, new_iou, score, new_score = (100 * value for value in shown.stages)
        axis.set_title(f"IoU {iou:.0f} to {new_iou:.0f}, predicted {score:.0f} to {new_score:.0f}", fontsize=9)
    figure.suptitle("white: ground truth, orange: first stage, green: second stage", fontsize=9)
    save_figure(figure, path)
    iou, new_iou, score, new_score = np.mean(seen.found, axis=0)
    better = np.mean([stages.new_iou > stages.iou for stages in seen.found])
    return (
        f"The first stage finds {len(seen.found):,} things on {about}: each has a distinct confident mask with an IoU "
        f"above {FOUND:g}. Their mean IoU is {100 * iou:.1f} before and {100 * new_iou:.1f} after the second stage and "
        f"rises for {100 * better:.0f} % of them. Their mean predicted IoU goes from {100 * score:.1f} to "
        f"{100 * new_score:.1f}."
    )


def _shape(count: int, most_columns: int) -> tuple[int, int]:
    """Return rows and columns for so many panels, as even as possible."""
    rows = -(-count // most_columns)
    return rows, -(-count // rows)


def _grid(shape: tuple[int, int], size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Make a figure of panels [rows, columns] without axis lines, each of (width, height) inches."""
    rows, columns = shape
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes
