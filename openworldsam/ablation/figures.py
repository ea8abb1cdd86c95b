"""Fig. 3 and two-stage inference, drawn from a trained adapter.

Shapes: K tie-breakers, N masks, H, W size of the image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from openworldsam.ablation.observations import (
    FOUND,
    Observations,
    distinct,
    full_size,
    mask_iou,
    observe,
    query_rows,
    specialisation,
)
from openworldsam.ablation.plots import contours, heat_maps, save_picture
from openworldsam.ablation.report import FIGURES
from openworldsam.checkpoint import load_weights
from openworldsam.data.datasets import register_datasets
from openworldsam.evaluation.examples import EvaluationDataset, Example
from openworldsam.modeling import OpenWorldSAM
from openworldsam.utils.device import usable_device
from openworldsam.utils.files import save_atomically
from openworldsam.visualization import contact_sheet, draw_prediction

BINS = 16
"""Places of a heat map along each side."""
EQUAL = 3
"""Equal things in the scene that is drawn, as there are zebras in Fig. 3."""


class Figure(NamedTuple):
    """A picture, its title, and what it shows in words."""

    file: Path
    title: str
    words: str


class Shown(NamedTuple):
    """Masks coloured by the query that made them, as `draw_prediction` takes them: bool [N, H, W], [N], [N]."""

    masks: np.ndarray
    scores: np.ndarray
    prompt_index: np.ndarray
    prompts: tuple[str, ...]
    task: str = "semantic"  # one colour for each query


def load_model(cfg: CfgNode, adapter: Path) -> OpenWorldSAM:
    """The model of a config with a trained adapter, for inference.

    Raises:
        FileNotFoundError, ValueError: weights are missing or do not fit.
    """
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(adapter)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    return model.to(cfg.MODEL.DEVICE).eval()


def draw_figures(
    model: OpenWorldSAM, single: OpenWorldSAM | None, cfg: CfgNode, name: str, folder: Path, adapter: str = "E5"
) -> None:
    """Draw equal_shapes.png, tie_breakers.png and two_stage.png; write `FIGURES` into OUTPUT_DIR for the report.

    Args:
        model: with tie-breakers.
        single: without (E1), if it was trained.
        cfg: of the model; its OUTPUT_DIR is the experiment's folder.
        name: of the dataset; its first TEST.MAX_IMAGES are looked at.
        folder: gets the pictures.
        adapter: what the pictures call the model's.

    Raises:
        ValueError: no image of the dataset has as many equal things as the figure needs.
    """
    register_datasets(cfg)
    metadata, records = MetadataCatalog.get(name), DatasetCatalog.get(name)
    dataset = EvaluationDataset(records, class_names=metadata.vocabulary, is_thing=metadata.is_thing)
    images = cfg.TEST.MAX_IMAGES or len(records)
    figures = [_equal_shapes(model, adapter, single, dataset, folder / "equal_shapes.png")]
    seen = observe(model, dataset, images)
    about = f"the first {images:,} images of {name}, by {adapter},"
    figures.append(_tie_breakers(seen, model.inference.score_threshold, about, folder / "tie_breakers.png"))
    if seen.found:
        figures.append(_two_stage(seen, about, folder / "two_stage.png"))
    content = [{**figure._asdict(), "file": str(figure.file.resolve())} for figure in figures]
    save_atomically(Path(cfg.OUTPUT_DIR) / FIGURES, lambda partial: partial.write_text(json.dumps(content, indent=1)))


def _equal_shapes(
    model: OpenWorldSAM, adapter: str, single: OpenWorldSAM | None, dataset: EvaluationDataset, path: Path
) -> Figure:
    """Fig. 3b and c: one image with several equal things, asked about with one query and with K."""
    example, class_id = _equal_scene(dataset)
    prompt, size = dataset.class_names[class_id], (example.inputs["height"], example.inputs["width"])
    true = [example.truth.segment_map == s["id"] for s in example.truth.segments if s["category_id"] == class_id]
    picture = example.inputs["image"].permute(1, 2, 0).numpy()
    things = tuple(f"{prompt} {number}" for number in range(1, len(true) + 1))
    truth = Shown(np.array(true), np.ones(len(true)), np.arange(len(true)), things)
    panels = [(f'Ground truth of "{prompt}"', draw_prediction(picture, truth))]
    words = [f'{example.inputs["file_name"]} has {len(true)} things of the class "{prompt}".']
    asked = [("One query (E1)", single)] if single else []
    for who, one in [*asked, (f"{model.adapter.num_queries} tie-breakers ({adapter})", model)]:
        _, rows = query_rows(one, example.inputs["image"], [prompt])
        kept = distinct(one, rows, size)
        masks = full_size(rows.select(kept), size) > 0
        queries = tuple(f"tie-breaker {k}" for k in range(one.adapter.num_queries)) if one is model else ("the query",)
        shown = Shown(masks, rows.scores[kept].cpu().numpy(), kept.cpu().numpy(), queries)
        panels.append((who, draw_prediction(picture, shown)))
        found = sum(any(mask_iou(mask, thing) > FOUND for mask in masks) for thing in true)
        words.append(f"{who}: {len(masks)} distinct confident masks; {found} of the things are found.")
    save_picture(contact_sheet(panels, columns=len(panels)), path)
    return Figure(path, "Several equal things (Fig. 3b and c)", " ".join(words))


def _equal_scene(dataset: EvaluationDataset) -> tuple[Example, int]:
    """The first image with `EQUAL` things of a class, and the class with most of them."""
    for index in range(len(dataset)):
        example = dataset[index]
        if isinstance(example, Example):
            classes = [s["category_id"] for s in example.truth.segments if dataset.is_thing[s["category_id"]]]
            counts = np.bincount(classes, minlength=1)
            if counts.max() >= EQUAL:
                return example, int(counts.argmax())
    raise ValueError(f"no image has {EQUAL} equal things to draw")


def _tie_breakers(seen: Observations, threshold: float, about: str, path: Path) -> Figure:
    """Fig. 3b over a split: a heat map of mask centres for each tie-breaker."""
    maps = np.zeros((len(seen.centres), BINS, BINS))
    for own, centres in zip(maps, seen.centres, strict=True):
        for x, y in centres:
            own[int(y * BINS), int(x * BINS)] += 1 / len(centres)
    counts = [len(centres) for centres in seen.centres]
    heat_maps(maps, [f"tie-breaker {k}: {count} masks" for k, count in enumerate(counts)], path)
    words = (
        f"Centres of the {sum(counts):,} masks of things on {about} with a score of at least {threshold:g}, duplicates "
        f"included; {sum(count > 0 for count in counts)} of {len(counts)} tie-breakers have any."
    )
    if (share := specialisation(seen.centres)) is not None:
        words += (
            f" Which tie-breaker it is explains {100 * share:.0f} % of the variance of the centres (0 %: all look "
            "everywhere alike; 100 %: each has one place)."
        )
    return Figure(path, "Where each tie-breaker finds things (Fig. 3b)", words)


def _two_stage(seen: Observations, about: str, path: Path) -> Figure:
    """Contours and scores before and after the second stage (paper Sec. 3 "Inference", Sec. B)."""
    contours(seen.closeups, path)
    iou, new_iou, score, new_score = np.mean(seen.found, axis=0)
    better = np.mean([stages.new_iou > stages.iou for stages in seen.found])
    words = (
        f"For the {len(seen.found):,} things of {about} that the first stage finds (a distinct confident mask with an "
        f"IoU above {FOUND:g}) the mean IoU is {100 * iou:.1f} before and {100 * new_iou:.1f} after the second stage; "
        f"it rises for {100 * better:.0f} % of them. The mean predicted IoU goes from {100 * score:.1f} to "
        f"{100 * new_score:.1f}. The paper (Table 1, ADE-150): PQ 35.2 to 36.3, AP 16.9 to 15.6, mIoU 60.4 to 58.0."
    )
    return Figure(path, "Two-stage inference (Sec. 3, Sec. B)", words)
