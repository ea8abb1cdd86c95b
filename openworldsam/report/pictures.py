"""Pictures of image, ground truth and the predictions of every run and method, side by side (Fig. 5 to 8).

Shapes: H, W image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openworldsam.data.records.coco_json import ImageId, expect
from openworldsam.data.records.rle import decode_mask
from openworldsam.evaluation.answer import Answer
from openworldsam.evaluation.metrics.accumulator import finite
from openworldsam.evaluation.saved import SavedPredictions
from openworldsam.report.evaluations import Evaluation
from openworldsam.report.others import OtherMethod
from openworldsam.utils.files import named
from openworldsam.visualization import LabelledMasks, draw_masks
from openworldsam.visualization.drawing import RGBImage
from openworldsam.visualization.legend import prompt_colors

PICTURE_SIDE = 320
"""Longest side of a picture in pixels."""
TRUTH = "ground truth"


LabelledMask = tuple[np.ndarray, float, str]
"""Mask bool [H, W], score, and text."""


class PictureRow(NamedTuple):
    """One image of the page: file name, pictures by column, and the colour (RGB, 0..255) of each text in them."""

    file_name: str
    pictures: dict[str, RGBImage]
    legend: dict[str, tuple[int, int, int]]


def spread_out(image_ids: Sequence[ImageId], count: int) -> list[ImageId]:
    """Pick `count` evenly spaced images, starting with the first."""
    step = max(len(image_ids) / count, 1.0) if count else 1.0
    return [image_ids[int(index * step)] for index in range(min(count, len(image_ids)))]


def picture_rows(
    runs: Sequence[Evaluation], benchmark: str, task: str, count: int, others: Sequence[OtherMethod] = ()
) -> list[PictureRow]:
    """Draw `count` of the images that all runs scored on this task have saved; empty if no run has.

    Args:
        runs: evaluations.
        benchmark: a benchmark of theirs.
        task: field of `Answer`.
        count: number of rows.
        others: methods whose predictions are drawn beside those of the runs, where there are any.

    Raises:
        FileNotFoundError: an image is no longer at its original path.
        ValueError: a prediction of another method is damaged or does not fit.
    """
    tasks = {"referring", "generalized_referring"} if task == "referring" else {task}
    scored = [run for run in runs if tasks & run.benchmarks.get(benchmark, {}).keys()]
    found = {run.name: saved for run in scored if (saved := run.saved(benchmark))}
    if not found:
        return []
    listed = [saved.image_ids() for saved in found.values()]
    common = set.intersection(*map(set, listed))
    chosen = spread_out([image_id for image_id in listed[0] if image_id in common], count)
    return [_row(found, benchmark, task, image_id, others) for image_id in chosen]


def _row(
    found: Mapping[str, SavedPredictions], benchmark: str, task: str, image_id: ImageId, others: Sequence[OtherMethod]
) -> PictureRow:
    columns: dict[str, list[LabelledMask]] = {"image": []}
    for run, saved in found.items():
        image, (prediction, truth) = saved.image(image_id), saved.answers(image_id)
        with expect(saved.folder, "folder of predictions of openworldsam evaluate"), named(saved.folder):
            columns.setdefault(TRUTH, masks_of(truth, task, saved.class_names, image.prompts))
            columns[run] = masks_of(prediction, task, saved.class_names, image.prompts)
    for other in others:
        answer = other.answer(benchmark, saved, image_id, image)
        if getattr(answer, task) is not None:
            with named(other.folder / benchmark):
                columns[other.name] = masks_of(answer, task, saved.class_names, image.prompts)
    texts = tuple(dict.fromkeys(text for column in columns.values() for _, _, text in column))
    none = np.zeros((0, *image.pixels.shape[:2]), dtype=bool)
    pictures = {}
    for name, column in columns.items():
        masks = np.stack([mask for mask, _, _ in column]) if column else none
        scores = np.array([score for _, score, _ in column], np.float32)
        index = np.array([texts.index(text) for _, _, text in column], dtype=np.int64)
        drawing = LabelledMasks(task, texts, masks, scores, index)
        pictures[name] = draw_masks(image.pixels, drawing, max_side=PICTURE_SIDE)
    return PictureRow(Path(image.file_name).name, pictures, dict(zip(texts, prompt_colors(len(texts)), strict=True)))


def masks_of(answer: Answer, task: str, names: Sequence[str], prompts: Sequence[str]) -> list[LabelledMask]:
    """Collect the masks of an answer to draw; none if the answer has no such task.

    Their texts are the class names by contiguous id, or the prompts of a referring answer.
    """
    if task == "panoptic" and answer.panoptic:
        ids, segments = answer.panoptic
        return [(ids == s["id"], finite("score", s.get("score", 1.0)), names[s["category_id"]]) for s in segments]
    if task == "instance" and answer.instance:
        decoded = [decode_mask(code := each["segmentation"], code["size"]) for each in answer.instance]
        labels = [(finite("score", each.get("score", 1.0)), names[each["category_id"]]) for each in answer.instance]
        return [(mask, *label) for mask, label in zip(decoded, labels, strict=True)]
    if task == "semantic" and answer.semantic is not None:
        classes, pixels = np.unique(answer.semantic[answer.semantic >= 0], return_counts=True)
        return [(answer.semantic == c, 1.0, names[c]) for c in classes[np.argsort(-pixels)].tolist()]
    if task == "referring" and answer.referring is not None:
        return [(mask, 1.0, text) for mask, text in zip(answer.referring, prompts, strict=True)]
    return []
