"""Referring segmentation: IoU between the one predicted and the one true mask of each expression.

Shapes: H, W image size.
"""

from __future__ import annotations

import numpy as np

from openworldsam.evaluation.metrics.accumulator import Scores, mean, percent

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


class ReferringScores:
    """cIoU, mIoU and precision.

    cIoU: sum of all intersections over sum of all unions, so large objects weigh more.
    mIoU: mean IoU over expressions, also called gIoU.
    precision@t: share of expressions with an IoU of at least t.
    Two empty masks have IoU 1 (gRefCOCO's rule for expressions that refer to nothing).
    """

    def __init__(self) -> None:
        self.areas: list[tuple[int, int]] = []
        """Intersection and union per expression, in pixels."""

    def update(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Add an expression by its predicted and true mask, bool [H, W]; raises ValueError if the sizes differ."""
        if predicted.shape != truth.shape:
            raise ValueError(f"the predicted mask is {predicted.shape}, the ground truth {truth.shape}")
        self.areas.append((int((predicted & truth).sum()), int((predicted | truth).sum())))

    def merge(self, other: ReferringScores) -> None:
        """Add the expressions of another accumulator."""
        self.areas.extend(other.areas)

    def compute(self) -> Scores:
        """Return cIoU, mIoU and precision@0.5 to precision@0.9; there are no per-class metrics."""
        ious = [intersection / union if union else 1.0 for intersection, union in self.areas]
        overall = {
            "cIoU": percent(sum(i for i, _ in self.areas), sum(u for _, u in self.areas)),
            "mIoU": mean(100 * iou for iou in ious),
        }
        for threshold in PRECISION_AT:
            overall[f"precision@{threshold}"] = percent(sum(iou >= threshold for iou in ious), len(ious))
        return Scores(overall, {})
