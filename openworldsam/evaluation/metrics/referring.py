"""Referring segmentation: IoU between the predicted and the true mask of each expression.

Shapes: H, W image size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from openworldsam.evaluation.metrics.accumulator import Scores, mean, percent

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


class Areas(NamedTuple):
    """Pixels of an expression: of the predicted mask, the true mask, and both."""

    predicted: int
    true: int
    intersection: int

    @property
    def union(self) -> int:
        """The pixels of either mask."""
        return self.predicted + self.true - self.intersection

    @property
    def iou(self) -> float:
        """The IoU, 1 of two empty masks."""
        return self.intersection / self.union if self.union else 1.0


class ReferringScores:
    """cIoU, mIoU and precision.

    cIoU: sum of all intersections over sum of all unions, so large objects weigh more.
    mIoU: mean IoU over expressions, also called gIoU.
    precision@t: share of expressions with an IoU of at least t.
    Two empty masks have IoU 1.
    """

    def __init__(self) -> None:
        self.areas: list[Areas] = []

    def update(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Add an expression by its predicted and true mask, bool [H, W]; raises ValueError if the sizes differ."""
        if predicted.shape != truth.shape:
            raise ValueError(f"the predicted mask is {predicted.shape}, the ground truth {truth.shape}")
        self.areas.append(Areas(*(int(mask.sum()) for mask in (predicted, truth, predicted & truth))))

    def merge(self, other: ReferringScores) -> None:
        """Add the expressions of another accumulator."""
        self.areas.extend(other.areas)

    def ciou(self) -> float | None:
        """Return cIoU."""
        return percent(sum(areas.intersection for areas in self.areas), sum(areas.union for areas in self.areas))

    def compute(self) -> Scores:
        """Return cIoU, mIoU and precision@0.5 to precision@0.9; there are no per-class metrics."""
        ious = [areas.iou for areas in self.areas]
        overall = {"cIoU": self.ciou(), "mIoU": mean(100 * iou for iou in ious)}
        for threshold in PRECISION_AT:
            overall[f"precision@{threshold}"] = percent(sum(iou >= threshold for iou in ious), len(ious))
        return Scores(overall, {})


class GeneralizedReferringScores(ReferringScores):
    """Metrics of gRefCOCO (Liu et al., "GRES: Generalized Referring Expression Segmentation", CVPR 2023).

    An empty true mask means that the expression has no target, an empty predicted mask that it is said to have none.
    gIoU: mean over expressions of the IoU, which is 1 if no target is rightly predicted, and 0 if wrongly.
    cIoU: sum of all intersections over sum of all unions.
    N-acc: share of the expressions without a target that are said to have none.
    T-acc: share of the expressions with a target that are said to have one.
    precision@t: share of the expressions with a target that have an IoU of at least t.
    """

    def compute(self) -> Scores:
        """Return gIoU, cIoU, N-acc, T-acc, and precision@0.7 to precision@0.9; there are no per-class metrics."""
        targeted = [areas for areas in self.areas if areas.true]
        others = [areas for areas in self.areas if not areas.true]
        overall = {
            "gIoU": mean(100 * areas.iou for areas in self.areas),
            "cIoU": self.ciou(),
            "N-acc": percent(sum(not areas.predicted for areas in others), len(others)),
            "T-acc": percent(sum(areas.predicted > 0 for areas in targeted), len(targeted)),
        }
        for threshold in PRECISION_AT[2:]:
            hits = sum(areas.iou >= threshold for areas in targeted)
            overall[f"precision@{threshold}"] = percent(hits, len(targeted))
        return Scores(overall, {})
