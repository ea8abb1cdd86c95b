"""Instance segmentation as Cityscapes measures it, by the rules of cityscapesScripts.

Shapes: H, W image size, n predictions and m ground-truth regions of a class in an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from openworldsam.data.records.rle import decode_mask
from openworldsam.evaluation.metrics.accumulator import Scores, finite, mean

OVERLAPS = np.arange(0.5, 1.0, 0.05)
"""IoUs that a match must exceed."""
MIN_PIXELS = 100
"""Smaller ground-truth objects are ignored."""


class Overlaps(NamedTuple):
    """Predictions and ground truth of a class in an image, areas in pixels.

    Attributes:
        scores, areas: [n], of the predictions.
        void: [n], areas of the predictions on void.
        intersections: [n, m].
        truth_areas, groups: [m], of the ground truth, and whether a region is a group of objects.
    """

    scores: np.ndarray
    areas: np.ndarray
    void: np.ndarray
    intersections: np.ndarray
    truth_areas: np.ndarray
    groups: np.ndarray

    @property
    def objects(self) -> np.ndarray:
        """The ground truth to be found, bool [m]: neither groups nor small."""
        return ~self.groups & (self.truth_areas >= MIN_PIXELS)

    def outcomes(self, overlap: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of the true and of the false positives.

        Of several predictions of an object the one with the highest score is right. Others that match nothing are
        false, unless more than `overlap` of them is on void, on groups and on small objects.
        """
        unions = self.areas[:, None] + self.truth_areas - self.intersections
        hits = self.intersections / unions > overlap
        found = [np.sort(self.scores[hit]) for hit in hits.T[self.objects] if hit.any()]
        excused = self.void + self.intersections[:, self.groups].sum(1)
        excused += self.intersections[:, self.truth_areas < MIN_PIXELS].sum(1)
        false = ~hits.any(1) & (excused / self.areas <= overlap)
        second = [score for scores in found for score in scores[:-1]]
        return np.array([scores[-1] for scores in found]), np.concatenate([second, self.scores[false]])


class CityscapesAP:
    """Cityscapes' AP, its AP at an IoU of 0.5, and the AP of each class.

    Differs from COCO's: predictions of an image are not limited, objects below 100 pixels and predictions mostly on
    void or groups do not count, and a precision-recall curve is integrated stepwise, without interpolation.

    Args:
        categories: ids of the classes; predictions of others are left out.
    """

    def __init__(self, categories: Iterable[int]) -> None:
        self.images: dict[int, list[Overlaps]] = {category: [] for category in sorted(categories)}

    def update(
        self,
        predicted: Sequence[Mapping[str, Any]],
        segment_map: np.ndarray,
        segments: Iterable[tuple[int, int, int]],
        void: np.ndarray | None = None,
    ) -> None:
        """Add an image.

        Args:
            predicted: category_id, score, and segmentation of any number of instances, in COCO's results format.
            segment_map: int [H, W], ids of the ground-truth segments; 0 is no segment.
            segments: (id, category id, iscrowd) of each; a crowd is a group of objects.
            void: bool [H, W], pixels of ignored classes; those without a segment by default.

        Raises:
            ValueError: a mask is damaged or of another size, or a score is no number.
        """
        void = segment_map == 0 if void is None else void
        height, width = segment_map.shape
        masks = [decode_mask(instance["segmentation"], (height, width)) for instance in predicted]
        known = list(segments)
        ids, pixels = np.unique(segment_map, return_counts=True)
        areas = dict(zip(ids.tolist(), pixels.tolist(), strict=True))
        for category, images in self.images.items():
            truth = [(id_, crowd) for id_, label, crowd in known if label == category and id_ in areas]
            found = [
                (finite("score", instance["score"]), mask)
                for instance, mask in zip(predicted, masks, strict=True)
                if instance["category_id"] == category and mask.any()
            ]
            overlaps = Overlaps(
                scores=np.array([score for score, _ in found], dtype=float),
                areas=np.array([mask.sum() for _, mask in found], dtype=int),
                void=np.array([(mask & void).sum() for _, mask in found], dtype=int),
                intersections=np.array(
                    [[(segment_map[mask] == id_).sum() for id_, _ in truth] for _, mask in found], dtype=int
                ).reshape(len(found), len(truth)),
                truth_areas=np.array([areas[id_] for id_, _ in truth], dtype=int),
                groups=np.array([crowd for _, crowd in truth], dtype=bool),
            )
            images.append(overlaps)

    def merge(self, other: CityscapesAP) -> None:
        """Add the images of another accumulator."""
        for category, images in other.images.items():
            self.images[category].extend(images)

    def compute(self) -> Scores:
        """Return AP_cityscapes and AP50_cityscapes, and AP_cityscapes per class; None without objects."""
        tables = {category: [_precision(images, t) for t in OVERLAPS] for category, images in self.images.items()}
        per_class = {category: {"AP_cityscapes": mean(values)} for category, values in tables.items()}
        overall = {
            "AP_cityscapes": mean(value for values in tables.values() for value in values),
            "AP50_cityscapes": mean(values[0] for values in tables.values()),
        }
        return Scores(overall, per_class)


def _precision(images: Sequence[Overlaps], overlap: float) -> float | None:
    """Return the average precision of a class, 0 to 100; None if it has no object."""
    objects = sum(int(image.objects.sum()) for image in images)
    if not objects:
        return None
    outcomes = [image.outcomes(overlap) for image in images]
    true, false = (np.sort(np.concatenate(scores)) for scores in zip(*outcomes, strict=True))
    thresholds = np.unique(np.concatenate([true, false]))
    hits = len(true) - np.searchsorted(true, thresholds)
    errors = len(false) - np.searchsorted(false, thresholds)
    # the curve starts at the lowest threshold and ends at no prediction, with a precision of 1
    precision = np.append(hits / (hits + errors), 1.0)
    recall = np.append(hits / objects, 0.0)
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return 100 * float(precision @ (padded[:-2] - padded[2:])) / 2
