"""Draws Fig. 3 and the effect of two-stage inference from a trained adapter.

Shapes: K tie-breakers, H, W image size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openworldsam.ablation.observations import (
    FOUND,
    Observations,
    decode_queries,
    distinct,
    full_size,
    observe,
    pair_iou,
    specialisation,
)
from openworldsam.ablation.report import FIGURES, save_figure
from openworldsam.data.datasets.catalog import load_records
from openworldsam.evaluation.examples import EvaluationDataset, Example
from openworldsam.modeling import OpenWorldSAM
from openworldsam.utils.files import save_json, save_png
from openworldsam.visualization import LabelledMasks, contact_sheet, draw_prediction

BINS = 16
"""Cells along each side of a heat map."""
EQUAL = 3
"""Least number of things of one class in the image of Fig. 3b and c."""
TITLES = (
    "Several things of one class (Fig. 3b and c)",
    "Mask centres of each tie-breaker (Fig. 3b)",
    "Two-stage inference (Sec. 3, Sec. B)",
)
BEFORE, AFTER, TRUTH = "#d55e00", "#009e73", "white"
"""Outlines of the first stage, the second stage and the ground truth."""


def draw_figures(
    model: OpenWorldSAM, single: OpenWorldSAM | None, cfg: CfgNode, name: str, folder: Path, adapter: str = "E5"
) -> None:
    """Draw equal_shapes.png, tie_breakers.png and two_stage.png; write `FIGURES` into OUTPUT_DIR for the report.

    Args:
        model, single: with tie-breakers; without (E1), if that was trained.
        cfg: config of `model`; OUTPUT_DIR is the experiment's folder.
        name: registered dataset, of which the first TEST.MAX_IMAGES are used.
        folder: gets the pictures.
        adapter: name of the model's adapter in the captions.

    Raises:
        ValueError: no image of the dataset has enough things of one class.
    """
    metadata, records = MetadataCatalog.get(name), load_records(name)
    dataset = EvaluationDataset(records, class_names=metadata.vocabulary, is_thing=metadata.is_thing)
    images = cfg.TEST.MAX_IMAGES or len(records)
    paths = [(folder / f"{stem}.png").resolve() for stem in ("equal_shapes", "tie_breakers", "two_stage")]
    words = [_equal_shapes(model, adapter, single, dataset, paths[0])]
    seen = observe(model, dataset, images)
    about = f"the first {images:,} images of {name} (weights: {adapter})"
    words.append(_tie_breakers(seen, model.inference.score_threshold, about, paths[1]))
    if seen.found:
        words.append(_two_stage(seen, about, paths[2]))
    figures = [{"file": str(path), "title": t, "words": w} for path, t, w in zip(paths, TITLES, words, strict=False)]
    save_json(Path(cfg.OUTPUT_DIR) / FIGURES, figures, indent=1)


def _equal_shapes(
    model: OpenWorldSAM, adapter: str, single: OpenWorldSAM | None, dataset: EvaluationDataset, path: Path
) -> str:
    """Draw Fig. 3b and c, an image with several things of one class, prompted with one query and with K; return the
    caption."""
    example, class_id = _equal_scene(dataset)
    prompt, size = dataset.class_names[class_id], (example.inputs["height"], example.inputs["width"])
    true = [example.truth.segment_map == s["id"] for s in example.truth.segments if s["category_id"] == class_id]
    image = example.inputs["image"].permute(1, 2, 0).numpy()
    things = tuple(f"{prompt} {number}" for number in range(1, len(true) + 1))
    # task "semantic" gives every thing or query one colour
    truth = LabelledMasks("semantic", things, np.array(true), np.ones(len(true), np.float32), np.arange(len(true)))
    panels = [(f'Ground truth of "{prompt}"', draw_prediction(image, truth))]
    words = [f'{example.inputs["file_name"]} has {len(true)} things of the class "{prompt}".']
    alone = [("One query (E1)", single)] if single else []
    for who, one in [*alone, (f"{model.adapter.num_queries} tie-breakers ({adapter})", model)]:
        _, queries = decode_queries(one, example.inputs["image"], [prompt])
        kept = distinct(one, queries, size)
        masks = full_size(queries.select(kept).logits, size) > 0
        names = tuple(f"tie-breaker {k}" for k in range(one.adapter.num_queries)) if one is model else ("the query",)
        drawing = LabelledMasks("semantic", names, masks, queries.scores[kept].numpy(), kept.numpy())
        panels.append((who, draw_prediction(image, drawing)))
        found = sum(any(pair_iou(mask, thing) > FOUND for mask in masks) for thing in true)
        words.append(f"{who}: {len(masks)} distinct confident masks, {found} of the things found.")
    save_png(path, contact_sheet(panels, columns=len(panels)))
    return " ".join(words)


def _equal_scene(dataset: EvaluationDataset) -> tuple[Example, int]:
    """Find the first image with `EQUAL` things of one class; return it and its most frequent class."""
    for index in range(len(dataset)):
        example = dataset[index]
        if isinstance(example, Example):
            classes = [s["category_id"] for s in example.truth.segments if dataset.is_thing[s["category_id"]]]
            counts = np.bincount(classes, minlength=1)
            if counts.max() >= EQUAL:
                return example, int(counts.argmax())
    raise ValueError(f"no image has {EQUAL} things of one class to draw")


def _tie_breakers(seen: Observations, threshold: float, about: str, path: Path) -> str:
    """Draw Fig. 3b over a split, a heat map of mask centres for each tie-breaker; return the caption."""
    counts = [len(centres) for centres in seen.centres]
    points = [np.reshape(centres, (-1, 2)) for centres in seen.centres]
    maps = [np.histogram2d(xy[:, 1], xy[:, 0], BINS, [(0, 1), (0, 1)])[0] / max(1, len(xy)) for xy in points]
    figure, axes = _grid(len(maps), 5, (2.2, 2.4))
    for k, (axis, heat) in enumerate(zip(axes, maps, strict=False)):
        axis.imshow(heat, cmap="magma", vmin=0, vmax=np.max(maps) or 1)  # one colour scale
        axis.set_title(f"tie-breaker {k}: {counts[k]} masks", fontsize=9)
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
    figure, axes = _grid(len(seen.closeups), 3, (3.4, 3.8))
    for axis, shown in zip(axes, seen.closeups, strict=False):
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
        f"{100 * new_score:.1f}. The paper (Table 1, ADE-150): PQ 35.2 to 36.3, AP 16.9 to 15.6, mIoU 60.4 to 58.0."
    )


def _grid(count: int, most_columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels without axis lines, each of (width, height) inches."""
    columns = min(most_columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes:
        axis.axis("off")
    return figure, axes
