"""COCO's instance format: a json of images and the masks of their objects. Other pixels are void.

Shapes: H, W image size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from openworldsam.data.records.coco_json import (
    Category,
    by_id,
    contiguous_ids,
    correct_names,
    expect,
    image_entries,
    is_crowd,
    warn_of_damage,
    warn_of_missing,
)
from openworldsam.data.records.record import Record, Segment
from openworldsam.data.records.rle import Segmentation, annotate_mask, usable_masks
from openworldsam.utils.files import named, read_json
from openworldsam.utils.text import brief

LVIS_KEYS = {"absent": "neg_category_ids", "not_exhaustive": "not_exhaustive_category_ids"}
"""Keys of LVIS's images by those of `InstanceRecord`."""


class Instance(TypedDict):
    """An object: id its number in the json, from 1; category_id contiguous; segmentation any of COCO's forms, area and
    bbox as the json has them, None if it has none."""

    id: int
    category_id: int
    iscrowd: int
    segmentation: Segmentation
    area: Any
    bbox: Any


class InstanceRecord(Record):
    """An image with its objects, maybe none: instances, a list of `Instance`.

    As in LVIS it may have absent: the classes that are known not to be there, if these are not all without an object;
    and not_exhaustive: classes of which some objects may be missing.
    """

    __slots__ = ()
    truth_keys = ("instances",)

    @property
    def is_empty(self) -> bool:
        return all(i["iscrowd"] or not i["segmentation"] for i in self["instances"])

    def segments(self) -> list[Segment]:
        """List the objects, with areas of 0, as no mask is decoded."""
        return [
            Segment(id=i["id"], category_id=i["category_id"], isthing=True, iscrowd=i["iscrowd"], area=0)
            for i in self["instances"]
        ]

    def read_panoptic(self) -> tuple[np.ndarray, list[Segment]]:
        """Decode the masks into a map of the object at each pixel.

        Of overlapping objects the smaller one is on top, and crowds are below all; COCO itself would keep both whole.
        """
        ids = np.zeros((self["height"], self["width"]), np.int32)
        for instance, mask in sorted(self._masks(), key=lambda pair: (not pair[0]["iscrowd"], -pair[1].sum())):
            ids[mask] = instance["id"]
        return ids, self.segments()

    def read_instances(self) -> list[dict[str, Any]]:
        """Decode the objects; overlapping masks stay whole.

        As in pycocotools, areas (which decide the size class) and boxes are those of the json where it has them.
        """
        annotations = []
        for instance, mask in self._masks():
            about = {key: instance[key] for key in ("id", "category_id", "iscrowd")}
            annotations.append({**annotate_mask(mask), **about, **_measures(instance)[0]})
        return annotations

    def damaged_objects(self) -> list[str]:
        problems = usable_masks(self["instances"], (self["height"], self["width"]))[1]
        return problems + [problem for instance in self["instances"] for problem in _measures(instance)[1]]

    def _masks(self) -> list[tuple[Instance, np.ndarray]]:
        """Decode the objects' masks, bool [H, W], with a warning of those that are damaged."""
        masks, problems = usable_masks(self["instances"], (self["height"], self["width"]))
        warn_of_damage(self["file_name"], problems)
        return [(each, mask) for each, mask in zip(self["instances"], masks, strict=True) if mask is not None]


def _measures(instance: Instance) -> tuple[dict[str, Any], list[str]]:
    """Return the usable ones of the area and box that the json gives an object, and what is wrong with the others."""
    usable: dict[str, Any] = {}
    problems = []
    for key, count in (("area", 1), ("bbox", 4)):
        if (value := instance.get(key)) is None or value == []:
            continue
        numbers = [value] if count == 1 else value
        if (
            isinstance(numbers, list)
            and len(numbers) == count
            and all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
            and min(numbers[-2:]) >= 0  # width and height
        ):
            usable[key] = value
        else:
            problems.append(f"object {instance['id']}: its {key} is {brief(value)}, that of its mask is taken")
    return usable, problems


def load_instances(
    json_file: str | Path, image_root: str | Path, *, categories: Sequence[Category], hint: str = ""
) -> list[InstanceRecord]:
    """Read a COCO instance json (https://cocodataset.org/#format-data, "Object Detection") into records.

    They are in the order of its images, including images without objects; an image may have `LVIS_KEYS`. A warning
    counts missing images; their records stay. For the arguments see `load_panoptic`.

    Raises:
        FileNotFoundError: the json, or every single image, is missing.
        ValueError: the json is damaged or of another format, or has an unknown category id, or no object but crowds and
            objects without a mask.
    """
    content = read_json(json_file, hint)
    with expect(json_file, "COCO instance json", hint), named(json_file):
        images = by_id(content["images"])
        correct_names(images, image_root)
        contiguous = contiguous_ids(content, categories)
        records = {i: InstanceRecord(image_entries(image, image_root), instances=[]) for i, image in images.items()}
        for i, image in images.items():
            for kind in ("absent", "not_exhaustive"):
                key = LVIS_KEYS[kind]
                if (listed := image.get(key)) is None:
                    continue
                if unknown := set(listed) - contiguous.keys():
                    raise ValueError(f"{key} of image {i} has {min(unknown)!r}, none of the known categories")
                records[i][kind] = [contiguous[category] for category in listed]
        for number, annotation in enumerate(content["annotations"], start=1):
            if (index := contiguous.get(annotation["category_id"])) is None:
                raise ValueError(f"an object has the category id {annotation['category_id']!r}, none of the known ones")
            instance = Instance(
                id=number,
                category_id=index,
                iscrowd=is_crowd(annotation),
                segmentation=annotation.get("segmentation"),
                area=annotation.get("area"),
                bbox=annotation.get("bbox"),
            )
            records[images[annotation["image_id"]]["id"]]["instances"].append(instance)
    if all(record.is_empty for record in records.values()):
        reason = "none with an object that has a mask and is not a crowd"
        raise ValueError(f"{json_file} has no usable image: {len(records)} listed, {reason}")
    warn_of_missing((record["file_name"] for record in records.values()), json_file, hint)
    return list(records.values())
