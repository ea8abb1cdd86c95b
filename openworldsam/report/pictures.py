"""Pictures of image, ground truth and the prediction of every run, side by side (Fig. 5, 7 and 8).

Shapes: N masks, H, W image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_util

from openworldsam.evaluation.answer import Answer
from openworldsam.evaluation.saved import SavedPredictions
from openworldsam.report.evaluations import Evaluation
from openworldsam.visualization import LabelledMasks, RGBImage, draw_masks
from openworldsam.visualization.legend import prompt_colors

SIDE = 480
"""Longest side of a picture in pixels."""
TRUTH = "ground truth"


class Masks(NamedTuple):
    """Masks of an answer to draw: masks bool [N, H, W], scores float32 [N], and the text of each."""

    masks: np.ndarray
    scores: np.ndarray
    texts: list[str]


class PictureRow(NamedTuple):
    """One image of the page: file name, pictures by column, and the colour (RGB, 0..255) of each text in them."""

    file_name: str
    pictures: dict[str, RGBImage]
    legend: dict[str, tuple[int, int, int]]


def spread_out(image_ids: Sequence[int], count: int) -> list[int]:
    """Pick `count` evenly spaced images, starting with the first."""
    step = max(len(image_ids) / count, 1.0) if count else 1.0
    return [image_ids[int(index * step)] for index in range(min(count, len(image_ids)))]


def picture_rows(runs: Sequence[Evaluation], benchmark: str, task: str, count: int) -> list[PictureRow]:
    """Draw `count` of the images that all runs scored on this task have saved; empty if no run has.

    Raises:
        FileNotFoundError: an image is no longer at its original path.
    """
    scored = [run for run in runs if task in run.benchmarks.get(benchmark, {})]
    found = {run.name: saved for run in scored if (saved := run.saved(benchmark))}
    if not found:
        return []
    common = set.intersection(*(set(saved.image_ids()) for saved in found.values()))
    return [_row(found, task, image_id) for image_id in spread_out(sorted(common), count)]


def _row(found: Mapping[str, SavedPredictions], task: str, image_id: int) -> PictureRow:
    columns: dict[str, Masks] = {}
    for run, saved in found.items():
        image, (prediction, truth) = saved.image(image_id), saved.answers(image_id)
        height, width, _ = image.picture.shape
        if not columns:
            columns["image"] = masks_of(Answer(), task, (height, width))
            columns[TRUTH] = masks_of(truth, task, (height, width), saved.class_names, image.prompts)
        columns[run] = masks_of(prediction, task, (height, width), saved.class_names, image.prompts)
    texts = tuple(dict.fromkeys(text for column in columns.values() for text in column.texts))
    pictures = {}
    for name, column in columns.items():
        index = np.array([texts.index(text) for text in column.texts], dtype=np.int64)
        drawing = LabelledMasks(task, texts, column.masks, column.scores, index)
        pictures[name] = draw_masks(image.picture, drawing, max_side=SIDE)
    return PictureRow(image.file_name, pictures, dict(zip(texts, prompt_colors(len(texts)), strict=True)))


def masks_of(
    answer: Answer, task: str, size: tuple[int, int], names: Sequence[str] = (), prompts: Sequence[str] = ()
) -> Masks:
    """Collect the masks of an answer to draw; none if the answer has no such task.

    Args:
        answer: prediction or ground truth.
        task: field of `Answer`.
        size: (H, W).
        names: class names by contiguous id.
        prompts: expressions of a referring answer.
    """
    found: list[tuple[np.ndarray, float, str]] = []
    if task == "panoptic" and answer.panoptic:
        ids, segments = answer.panoptic
        found = [(ids == s["id"], s.get("score", 1.0), names[s["category_id"]]) for s in segments]
    elif task == "instance" and answer.instance:
        decoded = [mask_util.decode(each["segmentation"]).astype(bool) for each in answer.instance]
        labels = [(each.get("score", 1.0), names[each["category_id"]]) for each in answer.instance]
        found = [(mask, *label) for mask, label in zip(decoded, labels, strict=True)]
    elif task == "semantic" and answer.semantic is not None:
        classes, pixels = np.unique(answer.semantic[answer.semantic >= 0], return_counts=True)
        found = [(answer.semantic == c, 1.0, names[c]) for c in classes[np.argsort(-pixels)].tolist()]
    elif task == "referring" and answer.referring is not None:
        found = [(mask, 1.0, text) for mask, text in zip(answer.referring, prompts, strict=True)]
    masks = np.stack([mask for mask, _, _ in found]) if found else np.zeros((0, *size), dtype=bool)
    return Masks(masks, np.array([score for _, score, _ in found], np.float32), [text for _, _, text in found])
