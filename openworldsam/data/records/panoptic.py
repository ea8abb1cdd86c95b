"""COCO's panoptic format: a json of images and their segments, and a folder of PNGs of the images' size.

The colour of a pixel is the id of its segment, R + 256 G + 65536 B; 0 is void
(https://cocodataset.org/#format-data, "Panoptic Segmentation").

Shapes: H, W image size.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.coco_json import (
    Category,
    ImageId,
    by_id,
    contiguous_ids,
    correct_names,
    expect,
    image_entries,
    is_crowd,
    segment_area,
    warn_of_missing,
    whole,
)
from openworldsam.data.records.labels import read_labels
from openworldsam.data.records.record import Record, Segment
from openworldsam.utils.files import named, read_json
from openworldsam.utils.panoptic_png import rgb2id

logger = logging.getLogger(__name__)


class PanopticRecord(Record):
    """An image with a panoptic PNG, pan_seg_file_name, and its segments, segments_info.

    If the dataset has semantic PNGs (contiguous class ids, for Detectron2's evaluator), it has a sem_seg_file_name;
    Cityscapes has an instance_ids_file_name, of its own ground truth, from which the panoptic one is made.
    """

    __slots__ = ()
    truth_keys = ("pan_seg_file_name", "segments_info")

    def files(self) -> list[str]:
        keys = ("file_name", "pan_seg_file_name", "instance_ids_file_name")
        return [self[key] for key in keys if key in self]

    @property
    def is_empty(self) -> bool:
        return all(segment["iscrowd"] for segment in self.segments())

    def segments(self) -> list[Segment]:
        return self["segments_info"]

    def read_panoptic(self) -> tuple[np.ndarray, list[Segment]]:
        ids, segments = rgb2id(read_image(self["pan_seg_file_name"])), self.segments()
        self._check_size(ids, "pan_seg_file_name", "its image")
        if unknown := set(np.unique(ids).tolist()) - {segment["id"] for segment in segments} - {0}:
            raise ValueError(f"{self['pan_seg_file_name']} has ids that its json does not: {sorted(unknown)[:5]}")
        return ids, segments

    def read_void(self, segment_map: np.ndarray) -> np.ndarray | None:
        """Leave out what has a number: the caravans and trailers, which have no segment and are not ignored."""
        if "instance_ids_file_name" not in self:
            return None
        values = read_labels(self["instance_ids_file_name"])
        self._check_size(values, "instance_ids_file_name", "its image")
        return (segment_map == 0) & (values < 1000)


def load_panoptic(
    json_file: str | Path,
    image_root: str | Path,
    panoptic_root: str | Path,
    semseg_root: str | Path | None = None,
    *,
    categories: Sequence[Category],
    hint: str = "",
) -> list[PanopticRecord]:
    """Read a COCO-panoptic json into records, in the order of its annotations.

    A warning counts missing images and PNGs; their records stay, so that no score silently covers fewer images.

    Args:
        json_file: the json.
        image_root, panoptic_root: folders of the images and of the panoptic PNGs.
        semseg_root: folder of the semantic PNGs, if any; they may be missing.
        categories: the classes in the order of their contiguous ids; `read_categories` gives those of a json.
        hint: what to do about a missing file; ends the error message.

    Raises:
        FileNotFoundError: the json, or every single image or PNG, is missing.
        ValueError: the json is damaged or of another format, has a category id that is not in `categories`, or no
            image with a segment that is not a crowd.
    """
    content = read_json(json_file, hint)
    records = []
    with expect(json_file, "COCO panoptic json", hint), named(json_file):
        images = by_id(content["images"])
        contiguous = contiguous_ids(content, categories)
        correct_names(images, image_root)
        for annotation in content["annotations"]:
            image, png = images[annotation["image_id"]], annotation["file_name"]
            record = PanopticRecord(
                image_entries(image, image_root),
                pan_seg_file_name=str(Path(panoptic_root, png)),
                segments_info=_segments(annotation["segments_info"], image["id"], contiguous, categories),
            )
            if semseg_root is not None:
                record["sem_seg_file_name"] = str(Path(semseg_root, png))
            records.append(record)
        if left_out := [images[i]["file_name"] for i in images.keys() - {record["image_id"] for record in records}]:
            message = "%s: %d of %d images have no annotation and are left out, such as %s"
            logger.error(message, json_file, len(left_out), len(images), min(left_out))
        if twice := [i for i, times in Counter(r["image_id"] for r in records).items() if times > 1]:
            raise ValueError(f"{len(twice)} images are annotated twice, such as image {twice[0]}")
    if all(record.is_empty for record in records):
        raise ValueError(f"{json_file} has no usable image: {len(records)} annotated, none with a segment to learn")
    for key in ("file_name", "pan_seg_file_name"):
        warn_of_missing((record[key] for record in records), json_file, hint)
    return records


def _segments(
    listed: Sequence[Mapping[str, Any]],
    image_id: ImageId,
    contiguous: Mapping[int, int],
    categories: Sequence[Category],
) -> list[Segment]:
    segments: list[Segment] = []
    for segment in listed:
        if (index := contiguous.get(segment["category_id"])) is None:
            raise ValueError(
                f"segment {segment['id']} of image {image_id} has the category id {segment['category_id']!r}, which "
                f"is none of the {len(categories)} known ones; does the json use other ids?"
            )
        segments.append(
            Segment(
                id=whole(segment["id"], f"the id of a segment of image {image_id}"),
                category_id=index,
                isthing=categories[index].is_thing,
                iscrowd=is_crowd(segment),
                area=segment_area(segment),
            )
        )
    if strange := [segment["id"] for segment in segments if not 0 < segment["id"] < 2**24]:
        raise ValueError(f"a segment of image {image_id} has the id {strange[0]}; ids are colours from 1, 0 is void")
    if len({segment["id"] for segment in segments}) < len(segments):
        raise ValueError(f"two segments of image {image_id} have one id: {[segment['id'] for segment in segments]}")
    return segments
