"""The picture and the ground truth of any dataset's record, from files or from a rendered scene.

Shapes: H, W image size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from panopticapi.utils import rgb2id

from openworldsam.data.datasets.coco import Segment
from openworldsam.data.datasets.refcocog import union_mask
from openworldsam.data.datasets.shapes import render_reference, scene_segments
from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.instances import instance_map, instance_segments
from openworldsam.data.records.labels import label_segments
from openworldsam.data.shapes import expressions

Record = Mapping[str, Any]


class Referent(NamedTuple):
    """An object that is referred to: its sentences, at least one, and its mask, bool [H, W]."""

    sentences: tuple[str, ...]
    mask: np.ndarray


def is_referring(record: Record) -> bool:
    """Whether a record has sentences about objects rather than segments of classes."""
    return record["scene"].level == "referring" if "scene" in record else "annotations" in record


def read_picture(record: Record) -> np.ndarray:
    """The image, uint8 [H, W, 3]; not to be changed.

    Raises:
        FileNotFoundError, ValueError: it is missing, damaged or of another size than the record says.
    """
    if "scene" in record:
        return render_reference(record["scene"]).image
    image = read_image(record["file_name"])
    if image.shape[:2] != (record["height"], record["width"]):
        raise ValueError(
            f"{record['file_name']} is {image.shape[1]} x {image.shape[0]}, "
            f"its annotation is {record['width']} x {record['height']}"
        )
    return image


def read_segments(record: Record) -> list[Segment]:
    """The segments of a panoptic record; one without pixels may be among them.

    Reads no file, but for a label record, whose classes no list tells: then it raises as `read_panoptic` does.
    """
    if "scene" in record:
        return scene_segments(record["scene"])
    if "coding" in record:
        return label_segments(record)[1]
    return instance_segments(record) if "instances" in record else record["segments_info"]


def read_panoptic(record: Record) -> tuple[np.ndarray, list[Segment]]:
    """The segment id of every pixel, int [H, W], 0 for void; and the segments. The map is not to be changed.

    Each class of a label image is one segment. COCO instances are segments too, the smaller above the larger.

    Raises:
        FileNotFoundError, ValueError: the PNG is missing, damaged, of another size, or has an unknown id or label.
    """
    if "coding" in record:
        return label_segments(record)
    segments = read_segments(record)
    if "instances" in record:
        return instance_map(record), segments
    if "scene" in record:
        return render_reference(record["scene"]).segment_map, segments
    ids = rgb2id(read_image(record["pan_seg_file_name"]))
    if ids.shape != (record["height"], record["width"]):
        raise ValueError(
            f"{record['pan_seg_file_name']} is {ids.shape[1]} x {ids.shape[0]}, "
            f"its image is {record['width']} x {record['height']}"
        )
    if unknown := set(np.unique(ids).tolist()) - {segment["id"] for segment in segments} - {0}:
        raise ValueError(f"{record['pan_seg_file_name']} has ids that its json does not: {sorted(unknown)[:5]}")
    return ids, segments


def read_sentences(record: Record) -> list[tuple[str, ...]]:
    """The sentences of each object of a referring record. Reads no file."""
    if "scene" in record:
        return list(expressions(render_reference(record["scene"])).values())
    return [tuple(annotation["sentences"]) for annotation in record["annotations"]]


def read_referring(record: Record) -> list[Referent]:
    """The objects of a referring record, in the order of `read_sentences`; a mask may be empty.

    Raises:
        ValueError: a segmentation is damaged.
    """
    if "scene" in record:
        scene = render_reference(record["scene"])
        masks = [scene.segment_map == id_ for id_ in expressions(scene)]
    else:
        size = (record["height"], record["width"])
        masks = [union_mask(annotation["segmentation"], *size) for annotation in record["annotations"]]
    return [Referent(*pair) for pair in zip(read_sentences(record), masks, strict=True)]
