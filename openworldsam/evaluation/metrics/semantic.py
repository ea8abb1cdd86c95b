"""Semantic segmentation: IoU and accuracy from a confusion matrix.

Shapes: H, W image size, N number of classes.
"""

from __future__ import annotations

import numpy as np

from openworldsam.evaluation.metrics.accumulator import Metrics, Scores, mean, percent


class SemanticScores:
    """mIoU, fwIoU and accuracies, over the pixels that the ground truth does not ignore.

    A class is present if the ground truth has pixels of it. The metrics are those of Detectron2's SemSegEvaluator:
        mIoU: mean IoU over the present classes.
        mIoU_gt_or_pred: the same sum divided by the number of classes that are present or predicted; X-Decoder's
            evaluator, and therefore the released code, calls this mIoU. Equal to mIoU if only present classes are
            prompted, smaller if others are predicted.
        fwIoU: mean IoU over the present classes, weighted by their pixels.
        mACC: mean accuracy over the present classes, where accuracy is the share of their pixels that is correct.
        pACC: share of all pixels that is correct.
    A pixel without a predicted class is a false negative of its true class and a false positive of none.

    Args:
        num_classes: N.
        ignore: label of pixels to leave out; may be one of the classes. None if there is no such label.
    """

    def __init__(self, num_classes: int, ignore: int | None = 255) -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        self.confusion = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
        """[N, N + 1] pixel counts by true and predicted class; the last column: no predicted class."""

    def update(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Add an image.

        Args:
            predicted: int [H, W], class ids; any value outside 0..N-1, such as -1, means no class.
            truth: int [H, W], class ids, or the ignored label.

        Raises:
            ValueError: the sizes differ, or the ground truth has another label.
        """
        if predicted.shape != truth.shape:
            raise ValueError(f"the prediction is {predicted.shape}, the ground truth {truth.shape}")
        counted = np.ones_like(truth, dtype=bool) if self.ignore is None else truth != self.ignore
        true_class, predicted_class = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
        outside = (true_class < 0) | (true_class >= self.num_classes)
        if outside.any():
            found = np.unique(true_class[outside])[:3].tolist()
            raise ValueError(
                f"the ground truth has the labels {found}; classes are 0..{self.num_classes - 1}, "
                f"{self.ignore} is ignored"
            )
        predicted_class[(predicted_class < 0) | (predicted_class >= self.num_classes)] = self.num_classes
        pairs = true_class * (self.num_classes + 1) + predicted_class
        self.confusion += np.bincount(pairs, minlength=self.confusion.size).reshape(self.confusion.shape)

    def merge(self, other: SemanticScores) -> None:
        """Add the counts of another accumulator with the same classes."""
        assert self.ignore == other.ignore
        self.confusion += other.confusion

    def compute(self) -> Scores:
        """Return the metrics listed above; per class IoU and ACC, which are None for absent classes."""
        hit = self.confusion.diagonal().tolist()
        true = self.confusion.sum(axis=1).tolist()
        claimed = self.confusion.sum(axis=0)[:-1].tolist()
        per_class: dict[int, Metrics] = {}
        for c in range(self.num_classes):
            union = true[c] + claimed[c] - hit[c] if true[c] else 0
            per_class[c] = {"IoU": percent(hit[c], union), "ACC": percent(hit[c], true[c])}
        ious = [per_class[c]["IoU"] for c in range(self.num_classes)]
        either = [iou if iou is not None or not claimed[c] else 0.0 for c, iou in enumerate(ious)]
        total = sum(true)
        weighted = [iou * pixels for iou, pixels in zip(ious, true, strict=True) if iou is not None]
        overall = {
            "mIoU": mean(ious),
            "mIoU_gt_or_pred": mean(either) if total else None,
            "fwIoU": sum(weighted) / total if total else None,
            "mACC": mean(metrics["ACC"] for metrics in per_class.values()),
            "pACC": percent(sum(hit), total),
        }
        return Scores(overall, per_class)
