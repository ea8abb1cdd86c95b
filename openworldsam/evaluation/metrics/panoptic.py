"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), by the rules of panopticapi.

Shapes: H, W image size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from openworldsam.evaluation.metrics.accumulator import Metrics, Scores, mean, percent

VOID_ID = 0
"""Segment id of pixels without a segment, in both maps; negative ids mean the same."""


@dataclass
class ClassCounts:
    """Counts of one class: IoU of every matched pair, unmatched predictions, unmatched ground truth."""

    ious: list[float] = field(default_factory=list)
    false_positives: int = 0
    false_negatives: int = 0

    def quality(self) -> Metrics:
        """Return PQ, SQ and RQ. A class without any match has SQ 0, as in panopticapi."""
        errors = (self.false_positives + self.false_negatives) / 2
        segments = len(self.ious) + errors
        iou = math.fsum(self.ious)
        sq = (percent(iou, len(self.ious)) or 0.0) if segments else None
        return {"PQ": percent(iou, segments), "SQ": sq, "RQ": percent(len(self.ious), segments)}


class PanopticQuality:
    """PQ, SQ and RQ of all classes, of things ("_th") and of stuff ("_st").

    A predicted and a true segment of the same class match if their IoU exceeds 0.5; predicted pixels on void are left
    out of the union. A crowd region is never matched and never counted as missed. An unmatched prediction is no error
    if more than half of it lies on void or on the crowd region of its class (the last one if an image has several).
    The metrics of a class without any segment, predicted or true, are None and count in no mean.

    Args:
        is_thing: by category id; defines the order of the results.
    """

    def __init__(self, is_thing: Mapping[int, bool]) -> None:
        self.is_thing = dict(is_thing)
        self.counts = {category: ClassCounts() for category in self.is_thing}

    def update(
        self,
        predicted_map: np.ndarray,
        predicted_segments: Iterable[tuple[int, int]],
        truth_map: np.ndarray,
        truth_segments: Iterable[tuple[int, int, int]],
        areas: Mapping[int, float] | None = None,
    ) -> None:
        """Add an image.

        Args:
            predicted_map: int [H, W], segment ids; 0 and -1 mean no segment.
            predicted_segments: (id, category id) of each segment.
            truth_map: int [H, W], segment ids; 0 is void. Pixels with an id that is not listed have no class, but are
                not void.
            truth_segments: (id, category id, iscrowd) of each segment.
            areas: by ground-truth id what the json says, which may exceed the pixels of the map where segments were
                drawn over others. As in panopticapi, it replaces them in the union; 0 or no entry leaves them.

        Raises:
            ValueError: the maps differ in size; a segment has an unknown category, an id below 1 or a duplicate id; a
                predicted segment is in the map but not listed, or listed but not in the map.
        """
        truth_segments = list(truth_segments)
        predicted = self._categories("predicted", predicted_segments)
        truth = self._categories("ground-truth", (segment[:2] for segment in truth_segments))
        overlaps = _overlaps(predicted_map, truth_map)
        in_map = {predicted_id for predicted_id, _ in overlaps} - {VOID_ID}
        if unlisted := in_map - predicted.keys():
            raise ValueError(f"the predicted map has the ids {sorted(unlisted)[:3]}, which no predicted segment has")
        if absent := predicted.keys() - in_map:
            raise ValueError(f"the predicted segments {sorted(absent)[:3]} have no pixel in the map")
        crowds = {category: segment for segment, category, iscrowd in truth_segments if iscrowd}
        crowd_ids = {segment for segment, _, iscrowd in truth_segments if iscrowd}
        self._count(overlaps, predicted, truth, crowds, crowd_ids, areas or {})

    def _categories(self, kind: str, segments: Iterable[tuple[int, ...]]) -> dict[int, int]:
        """Return the category by segment id, after checking both."""
        categories: dict[int, int] = {}
        for segment, category in segments:
            if category not in self.counts:
                raise ValueError(f"the {kind} segment {segment} has the unknown category {category}")
            if segment <= VOID_ID or segment in categories:
                raise ValueError(f"{kind} segment ids must be unique and at least 1, got {segment}")
            categories[segment] = category
        return categories

    def _count(
        self,
        overlaps: Mapping[tuple[int, int], int],
        predicted: Mapping[int, int],
        truth: Mapping[int, int],
        crowds: Mapping[int, int],
        crowd_ids: set[int],
        areas: Mapping[int, float],
    ) -> None:
        predicted_area, truth_area = Counter[int](), Counter[int]()
        for (predicted_id, truth_id), pixels in overlaps.items():
            predicted_area[predicted_id] += pixels
            truth_area[truth_id] += pixels
        unmatched, missed = set(predicted), truth.keys() - crowd_ids
        for (predicted_id, truth_id), pixels in overlaps.items():
            category = predicted.get(predicted_id)
            if category is None or category != truth.get(truth_id) or truth_id in crowd_ids:
                continue
            union = predicted_area[predicted_id] + (areas.get(truth_id) or truth_area[truth_id]) - pixels
            iou = pixels / (union - overlaps.get((predicted_id, VOID_ID), 0))
            if iou > 0.5:
                self.counts[category].ious.append(iou)
                # an area below the pixels of its segment may match twice, which panopticapi counts twice
                unmatched.discard(predicted_id)
                missed.discard(truth_id)
        for truth_id in missed:
            self.counts[truth[truth_id]].false_negatives += 1
        for predicted_id in unmatched:
            category = predicted[predicted_id]
            # -1 for a class without a crowd region: no id in the map is negative
            excused = sum(overlaps.get((predicted_id, region), 0) for region in (VOID_ID, crowds.get(category, -1)))
            if excused / predicted_area[predicted_id] <= 0.5:
                self.counts[category].false_positives += 1

    def merge(self, other: PanopticQuality) -> None:
        """Add the counts of another accumulator with the same classes."""
        assert self.is_thing == other.is_thing
        for category, counts in other.counts.items():
            ours = self.counts[category]
            ours.ious.extend(counts.ious)
            ours.false_positives += counts.false_positives
            ours.false_negatives += counts.false_negatives

    def compute(self) -> Scores:
        """Return PQ, SQ, RQ, PQ_th, ..., RQ_st, and PQ, SQ, RQ per class."""
        per_class = {category: counts.quality() for category, counts in self.counts.items()}
        kinds = {"": (True, False), "_th": (True,), "_st": (False,)}
        overall = {
            name + suffix: mean(per_class[category][name] for category, thing in self.is_thing.items() if thing in kind)
            for suffix, kind in kinds.items()
            for name in ("PQ", "SQ", "RQ")
        }
        return Scores(overall, per_class)


def _overlaps(predicted_map: np.ndarray, truth_map: np.ndarray) -> dict[tuple[int, int], int]:
    """Count the pixels of each (predicted id, true id) pair that overlaps; ids below 1 become 0."""
    if predicted_map.shape != truth_map.shape:
        raise ValueError(f"the predicted map is {predicted_map.shape}, the ground truth {truth_map.shape}")
    predicted, truth = (np.maximum(ids, VOID_ID).astype(np.int64) for ids in (predicted_map, truth_map))
    pairs, pixels = np.unique(predicted << 32 | truth, return_counts=True)
    return {divmod(pair, 1 << 32): count for pair, count in zip(pairs.tolist(), pixels.tolist(), strict=True)}
