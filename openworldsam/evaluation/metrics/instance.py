"""Instance segmentation: average precision and recall of masks and boxes, by pycocotools.

Shapes: H, W image size.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from openworldsam.data.records.coco_json import ImageId, is_crowd
from openworldsam.data.records.rle import to_rle
from openworldsam.evaluation.metrics.accumulator import Metrics, Scores, finite, percent

IOU_TYPES = ("segm", "bbox")
STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve metrics, in the order of COCOeval."""
RECALL = {
    "recall_of_1": range(1, 2),
    "recall_of_2": range(2, 3),
    "recall_of_3": range(3, 4),
    "recall_of_4_to_8": range(4, 9),
    "recall_of_9_or_more": range(9, sys.maxsize),
}
"""Recall of an object by the number of objects of its class in its image: the metrics, and the numbers of each."""
FOUND = 0.5
"""An object counts as found if the IoU with a predicted mask is larger."""

Annotation = dict[str, Any]


class ImageInstances(NamedTuple):
    """Instances of one image of size (H, W), in the form that COCOeval reads."""

    size: tuple[int, int]
    predicted: list[Annotation]
    truth: list[Annotation]


class InstanceAP:
    """COCO's twelve metrics and the AP of every class, for masks or for boxes; for masks also `RECALL`.

    COCO's numbers equal those of COCOeval on files, with two of its pitfalls avoided: the size class (small, medium,
    large) of a predicted mask always follows from the area of the mask, even if the prediction comes with a box (as in
    Detectron2), and an object with annotation id 0 can be matched.

    Args:
        categories: the category ids.
        iou_type: "segm" to compare masks, "bbox" to compare boxes.

    Raises:
        ValueError: unknown iou_type.
    """

    def __init__(self, categories: Iterable[int], iou_type: str = "segm") -> None:
        if iou_type not in IOU_TYPES:
            raise ValueError(f"iou_type is one of {IOU_TYPES}, got {iou_type!r}")
        self.categories = sorted(set(categories))
        self.iou_type = iou_type
        self.images: dict[ImageId, ImageInstances] = {}

    def update(
        self,
        image_id: ImageId,
        size: tuple[int, int],
        predicted: Sequence[Mapping[str, Any]],
        truth: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add an image.

        Args:
            image_id: unique among all images.
            size: (H, W).
            predicted: category_id, score, and segmentation or bbox (x, y, width, height), in COCO's results format;
                Detectron2's `instances_to_coco_json` returns it. A missing bbox is taken from the mask.
            truth: category_id, area, segmentation, bbox, and iscrowd if not 0, in COCO's annotation format.

        Raises:
            ValueError: the image was added before, or an instance has an unknown category, a damaged mask, a mask of
                another size, or a value that is not a number where one is needed.
            KeyError: an instance lacks an entry.
        """
        if image_id in self.images:
            raise ValueError(f"image {image_id} was added twice")
        found = [self._instance(p, size) | {"score": float(finite("score", p["score"]))} for p in predicted]
        real = [self._instance(t, size) | {"area": finite("area", t["area"]), "iscrowd": is_crowd(t)} for t in truth]
        self.images[image_id] = ImageInstances(size, found, real)

    def _instance(self, annotation: Mapping[str, Any], size: tuple[int, int]) -> Annotation:
        """Convert an instance to the form that COCOeval reads, with the mask as compressed RLE."""
        category = annotation["category_id"]
        if category not in self.categories:
            raise ValueError(f"an instance has the unknown category {category}")
        if self.iou_type == "segm":
            code = to_rle(annotation["segmentation"], size)
            return {"category_id": category, "segmentation": code, "area": float(mask_util.area(code))}
        box = annotation.get("bbox") or mask_util.toBbox(to_rle(annotation["segmentation"], size)).tolist()
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            raise ValueError(f"bbox must be x, y, width and height, got {box!r}")
        x, y, width, height = (finite("bbox", value) for value in box)
        return {"category_id": category, "bbox": [x, y, width, height], "area": width * height}

    def merge(self, other: InstanceAP) -> None:
        """Add the images of another accumulator.

        Raises:
            ValueError: an image is in both.
        """
        assert self.categories == other.categories and self.iou_type == other.iou_type
        if both := self.images.keys() & other.images.keys():
            raise ValueError(f"image {min(both)} was added twice")
        self.images.update(other.images)

    def compute(self) -> Scores:
        """Return STATISTICS, RECALL (of masks), and AP per class."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(self._coco("truth"), self._coco("predicted"), self.iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values = evaluation.stats.tolist()
        overall = {name: _percent(value) for name, value in zip(STATISTICS, values, strict=True)}
        if self.iou_type == "segm":
            overall |= self._recall(evaluation.ious)
        # [thresholds, recalls, classes, areas, max detections]; area 0 is "all", the last maximum is 100
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        per_class: dict[int, Metrics] = {}
        for index, category in enumerate(self.categories):
            known = precision[:, :, index][precision[:, :, index] > -1]
            per_class[category] = {"AP": _percent(float(np.mean(known)) if known.size else -1.0)}
        return Scores(overall, per_class)

    def _recall(self, ious: Mapping[tuple[ImageId, int], Any]) -> Metrics:
        """Return RECALL. An object is found if any mask of its class fits; crowd regions are left out.

        Args:
            ious: COCOeval's, by image and category: IoU [predictions, objects], empty without any prediction.
        """
        found, there = Counter[int](), Counter[int]()
        for image_id, image in self.images.items():
            for category in {t["category_id"] for t in image.truth}:
                single = [not t["iscrowd"] for t in image.truth if t["category_id"] == category]
                fits = np.reshape(ious[image_id, category], (-1, len(single))) > FOUND
                there[sum(single)] += sum(single)
                found[sum(single)] += int(fits.any(axis=0)[single].sum())
        return {
            name: percent(sum(found[n] for n in found if n in sizes), sum(there[n] for n in there if n in sizes))
            for name, sizes in RECALL.items()
        }

    def _coco(self, kind: Literal["predicted", "truth"]) -> COCO:
        """Build a COCO object of all predicted or true instances; copies them, since pycocotools modifies its input."""
        instances = [a | {"image_id": i} for i, image in self.images.items() for a in getattr(image, kind)]
        sizes = {i: image.size for i, image in self.images.items()}
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": height, "width": width} for i, (height, width) in sizes.items()],
            "categories": [{"id": category} for category in self.categories],
            "annotations": [a | {"id": index} for index, a in enumerate(instances, start=1)],
        }
        coco.createIndex()
        return coco


class MasksAndBoxes:
    """Metrics of masks, STATISTICS of boxes (AP_box, ...), and the mask AP of every class; see `InstanceAP`."""

    def __init__(self, categories: Iterable[int]) -> None:
        categories = list(categories)
        self.masks, self.boxes = InstanceAP(categories), InstanceAP(categories, "bbox")

    def update(self, *image: Any) -> None:
        """Add an image; see `InstanceAP.update`. Every instance needs a mask."""
        self.masks.update(*image)
        self.boxes.update(*image)

    def merge(self, other: MasksAndBoxes) -> None:
        """Add the images of another accumulator."""
        self.masks.merge(other.masks)
        self.boxes.merge(other.boxes)

    def compute(self) -> Scores:
        """Return the metrics listed above."""
        scores, boxes = self.masks.compute(), self.boxes.compute().overall
        return Scores({**scores.overall, **{f"{name}_box": value for name, value in boxes.items()}}, scores.per_class)


def _percent(value: float) -> float | None:
    """Scale to 0..100; COCOeval returns -1 if there is nothing to measure."""
    return 100 * value if value > -1 else None
