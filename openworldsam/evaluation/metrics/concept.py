"""Concept segmentation: is a phrase in the image, and where is every instance of it? The metrics of SA-Co (SAM 3).

Shapes: H, W image size, T IoU thresholds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util
from scipy.optimize import linear_sum_assignment

from openworldsam.data.records.coco_json import is_crowd
from openworldsam.data.records.rle import RLE, to_rle
from openworldsam.evaluation.metrics.accumulator import Scores, finite, mean

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
SMALLEST_SCORE = 0.5
"""A prediction counts from this score on."""


class Unit(NamedTuple):
    """An (image, phrase) pair: matched pairs by threshold [T], predictions, and ground truths."""

    hits: np.ndarray
    predicted: int
    true: int

    @classmethod
    def of(cls, predicted: Sequence[RLE], truth: Sequence[RLE]) -> Unit:
        """Pair predictions with ground truths so that the sum of IoUs is largest (Hungarian matching)."""
        ious = np.zeros(0)
        if predicted and truth:
            table = mask_util.iou(predicted, truth, [0] * len(truth))
            ious = table[linear_sum_assignment(table, maximize=True)]
        return cls((ious >= np.array(THRESHOLDS)[:, None]).sum(axis=1), len(predicted), len(truth))

    def f1(self) -> float:
        """Return its mean F1 over the thresholds; 1 for a phrase that is rightly not found."""
        total = self.predicted + self.true
        return float(np.mean(2 * self.hits / total)) if total else 1.0


class ConceptScores:
    """cgF1, pmF1 and IL_MCC of SA-Co.

    A unit is an image with one of the phrases that it was asked for. Predictions with a score below `SMALLEST_SCORE`
    are left out. At each IoU threshold 0.5, 0.55, ... 0.95:
        pmF1: F1 from precision over the units with ground truth and predictions, and recall over all with ground
            truth; counts of all units are added first ("positive micro F1").
        IL_MCC: Matthews correlation of "has a prediction" with "has a ground truth" over the units, from -1 to 1.
        cgF1: pmF1 x IL_MCC.
    pmF1 and cgF1 are means over the thresholds; pmF1@0.5, cgF1@0.75 and so on those of one. As published, only F1
    metrics are multiplied by 100. If a unit has several ground truths (annotators), that of the best F1 counts. A unit
    is left out if its ground truth has a crowd region, as its objects are then not all outlined.
    """

    def __init__(self) -> None:
        self.hits, self.false_positives, self.misses = np.zeros((3, len(THRESHOLDS)), dtype=np.int64)
        """[T]; false positives of units that have a ground truth and a prediction."""
        self.units = Counter[tuple[bool, bool]]()
        """Number of units by (has a ground truth, has a prediction)."""

    def update(
        self,
        size: tuple[int, int],
        phrases: Collection[int],
        predicted: Sequence[Mapping[str, Any]],
        *truths: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add an image.

        Args:
            size: (H, W).
            phrases: category ids that it was asked for; others are left alone.
            predicted: category_id, score and segmentation, in COCO's results format.
            truths: by annotator, at least one: category_id, segmentation, and iscrowd if not 0, in COCO's annotation
                format.

        Raises:
            ValueError: a damaged mask, one of another size, or a score that is no number.
            KeyError: an instance lacks an entry.
        """
        confident = [p for p in predicted if finite("score", p["score"]) >= SMALLEST_SCORE]
        found = _masks(confident, size)
        outlined = [_masks([t for t in truth if not is_crowd(t)], size) for truth in truths]
        crowds = [{t["category_id"] for t in truth if is_crowd(t)} for truth in truths]
        for phrase in phrases:
            units = [
                Unit.of(found.get(phrase, []), masks.get(phrase, []))
                for masks, crowd in zip(outlined, crowds, strict=True)
                if phrase not in crowd
            ]
            if units:
                self._count(max(units, key=Unit.f1))

    def _count(self, unit: Unit) -> None:
        self.hits += unit.hits
        self.misses += unit.true - unit.hits
        if unit.true:
            self.false_positives += unit.predicted - unit.hits
        self.units[unit.true > 0, unit.predicted > 0] += 1

    def merge(self, other: ConceptScores) -> None:
        """Add the counts of another accumulator."""
        self.hits += other.hits
        self.false_positives += other.false_positives
        self.misses += other.misses
        self.units += other.units

    def compute(self) -> Scores:
        """Return cgF1, cgF1@0.5, cgF1@0.75, the same of pmF1, and IL_MCC; None without any unit."""
        mcc = self._correlation()
        precision = self.hits / (self.hits + self.false_positives + 1e-4)
        recall = self.hits / (self.hits + self.misses + 1e-4)
        f1 = dict(zip(THRESHOLDS, (100 * 2 * precision * recall / (precision + recall + 1e-4)).tolist(), strict=True))
        overall: dict[str, float | None] = {}
        for name, factor in (("cgF1", mcc), ("pmF1", 1.0)):
            overall[name] = factor * float(mean(f1.values()) or 0)
            overall |= {f"{name}@{threshold}": factor * f1[threshold] for threshold in (0.5, 0.75)}
        overall["IL_MCC"] = mcc
        return Scores(overall if self.units else dict.fromkeys(overall), {})

    def _correlation(self) -> float:
        (tp, fn), (fp, tn) = ([self.units[true, found] for found in (True, False)] for true in (True, False))
        return (tp * tn - fp * fn) / (math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) + 1e-6)


def _masks(instances: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> dict[int, list[RLE]]:
    """Group the masks of instances by category."""
    masks: dict[int, list[RLE]] = {}
    for instance in instances:
        masks.setdefault(instance["category_id"], []).append(to_rle(instance["segmentation"], size))
    return masks
