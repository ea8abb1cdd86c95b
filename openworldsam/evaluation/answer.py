"""Answers: the predictions or the ground truth of an image, in the form that is scored and saved.

Shapes: H, W size of the image, P prompts of the image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from openworldsam.data.records.record import semantic_map
from openworldsam.data.records.rle import annotate_mask
from openworldsam.evaluation.examples import Truth

NO_CLASS = -1
"""Semantic label of a pixel without a class."""


class Answer(NamedTuple):
    """The answer to each task, None for a task that was not asked. Classes are contiguous ids.

    Attributes:
        panoptic: int [H, W] segment ids, 0 for none; and the segments: id, category_id, with isthing and score
            (predictions) or iscrowd and area (ground truth).
        instance: COCO's results (category_id, segmentation as RLE, score) or its annotations (area, bbox, iscrowd).
        semantic: int [H, W], `NO_CLASS` for none.
        referring: P times bool [H, W].
    """

    panoptic: tuple[np.ndarray, Sequence[Mapping[str, Any]]] | None = None
    instance: Sequence[Mapping[str, Any]] | None = None
    semantic: np.ndarray | None = None
    referring: Sequence[np.ndarray] | None = None


def predicted_answer(predicted: Mapping[str, Any], image_id: int) -> Answer:
    """Convert a result of `OpenWorldSAM.forward`; arrays are on the CPU."""
    panoptic = instances = semantic = referring = None
    if "panoptic_seg" in predicted:
        panoptic = (predicted["panoptic_seg"][0].cpu().numpy(), predicted["panoptic_seg"][1])
    if "instances" in predicted:
        instances = instances_to_coco_json(predicted["instances"].to("cpu"), image_id)
    if "semantic" in predicted:
        semantic = predicted["semantic"].cpu().numpy()
    if "referring" in predicted:
        referring = list(predicted["referring"][0].cpu().numpy())
    return Answer(panoptic, instances, semantic, referring)


def true_answer(truth: Truth, is_thing: Sequence[bool], tasks: Collection[str]) -> Answer:
    """Convert the ground truth of some tasks."""
    segments = [
        {key: int(s[key]) for key in ("id", "category_id", "iscrowd")}
        | {"area": s.get("area") or int((truth.segment_map == s["id"]).sum())}
        for s in truth.segments
    ]
    return Answer(
        (truth.segment_map, segments) if "panoptic" in tasks else None,
        true_instances(truth, is_thing) if "instance" in tasks else None,
        semantic_map(truth.segment_map, truth.segments, NO_CLASS) if "semantic" in tasks else None,
        truth.referents if "referring" in tasks else None,
    )


def true_instances(truth: Truth, is_thing: Sequence[bool]) -> list[Mapping[str, Any]]:
    """Return the things as COCO annotations: of the objects as given, or of the segments."""
    if truth.instances is not None:
        return [instance for instance in truth.instances if is_thing[instance["category_id"]]]
    annotations: list[Mapping[str, Any]] = []
    for segment in truth.segments:
        mask = truth.segment_map == segment["id"]
        if is_thing[segment["category_id"]] and mask.any():
            labels = {key: int(segment[key]) for key in ("category_id", "iscrowd")}
            annotations.append(labels | annotate_mask(mask))
    return annotations
