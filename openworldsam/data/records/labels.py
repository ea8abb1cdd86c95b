"""Label images: the value of a pixel encodes its class.

Shapes: H, W image size.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openworldsam.data.preprocessing import open_image, upright, upright_size
from openworldsam.data.records.coco_json import Category, warn_of_missing
from openworldsam.data.records.record import Record, Segment

LABEL_SUFFIXES = (".png", ".tif", ".tiff")
MAX_LABEL = 65_535
_VOID, _UNKNOWN = -1, -2


def void_label(num_classes: int) -> int:
    """Return the label of pixels without a class in an image of class ids: 255, or 65535 from 256 classes on."""
    return 255 if num_classes < 256 else MAX_LABEL


class LabelCoding(NamedTuple):
    """The meaning of label values: values[c] is class c, ignored ones are void, any other is an error."""

    values: tuple[int, ...]
    is_thing: tuple[bool, ...]
    ignored: frozenset[int]

    @classmethod
    def of(cls, categories: Sequence[Category], ignored: Iterable[int], offset: int = 0) -> LabelCoding:
        """Code each class as id + offset; a value that is also ignored counts as the class."""
        values = tuple(category.id + offset for category in categories)
        return cls(values, tuple(c.is_thing for c in categories), frozenset(ignored) - set(values))


class LabelRecord(Record):
    """An image with a label image, sem_seg_file_name, and the coding of its values, shared by the dataset."""

    __slots__ = ()
    truth_keys = ("sem_seg_file_name", "coding")

    def files(self) -> list[str]:
        return [self["file_name"], self["sem_seg_file_name"]]

    def segments(self) -> list[Segment]:
        return self.read_panoptic()[1]

    def read_panoptic(self) -> tuple[np.ndarray, list[Segment]]:
        """Make each class in the label image a segment, whose id is the class id + 1."""
        path, coding = self["sem_seg_file_name"], self["coding"]
        labels = read_labels(path)
        self._check_size(labels, "sem_seg_file_name", "its image")
        classes = _table(coding)[labels]
        if (unknown := classes == _UNKNOWN).any():
            value, number = int(labels[unknown][0]), int(unknown.sum())
            known = f"the {len(coding.values)} classes are {min(coding.values)} to {max(coding.values)}"
            raise ValueError(f"{path} has the label {value} ({number} such pixels), which is no class: {known}")
        ids = classes + 1
        return ids, [
            Segment(id=i, category_id=i - 1, isthing=coding.is_thing[i - 1], iscrowd=False, area=area)
            for i, area in enumerate(np.bincount(ids.ravel()).tolist())
            if i and area
        ]


def load_labels(
    name: str, pairs: Sequence[tuple[Path, Path]], coding: LabelCoding, source: str | Path, hint: str = ""
) -> list[LabelRecord]:
    """Make records of (image, label image) pairs, reading each image's header for its size.

    Image ids differ from those of datasets with other names. A warning counts missing files; their records stay, so
    that no score silently covers fewer images, and so do those of unreadable images, with a size of 0.

    Raises:
        FileNotFoundError: there is no pair, or every single image or label image is missing; names the source.
    """
    if not pairs:
        raise FileNotFoundError(f"{source} has no images. {hint}".rstrip())
    for files in zip(*pairs, strict=True):
        warn_of_missing(map(str, files), source, hint)
    first, records = zlib.crc32(name.encode()) * 1_000_000, []
    for index, (image, labels) in enumerate(pairs):
        height, width = _size(image)
        records.append(
            LabelRecord(
                file_name=str(image),
                image_id=first + index,
                height=height,
                width=width,
                sem_seg_file_name=str(labels),
                coding=coding,
            )
        )
    return records


def _size(path: Path) -> tuple[int, int]:
    """Return (H, W) of an upright image; (0, 0) if its header is damaged, as reading the image will report that."""
    try:
        with open_image(path) as image:
            return upright_size(image)
    except (OSError, ValueError):
        return 0, 0


def read_labels(path: str | Path) -> np.ndarray:
    """Read the values of a label image, upright, int32 [H, W]: grey of 1 to 16 bits, or palette indices.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, has several channels, or values outside 0..65535.
    """
    with open_image(path, "label image") as image:
        if image.format == "JPEG":
            raise ValueError("JPEG changes the values of pixels; a label image is a PNG or TIFF")
        args: Any = image.tile[0].args if image.tile else ""  # the raw mode, alone or first of several
        raw_mode = args if isinstance(args, str) else str(args[0])
        labels = np.asarray(upright(image))
    if labels.ndim != 2 or labels.dtype.kind not in "uib":
        raise ValueError(f"{path} is no label image: one channel of whole numbers, got {labels.shape} {labels.dtype}")
    labels = _samples(labels.astype(np.int32), raw_mode)
    if labels.size and not 0 <= labels.min() <= labels.max() <= MAX_LABEL:
        raise ValueError(f"{path} has the values {labels.min()} to {labels.max()}, labels are 0 to {MAX_LABEL}")
    return labels


def _samples(values: np.ndarray, raw_mode: str) -> np.ndarray:
    """Undo what Pillow does to grey samples: it stretches those of 2 and 4 bits to 0..255, and turns those of a TIFF
    round in which 0 is white."""
    if not (form := re.fullmatch("(1|L)(?:;([24]?)(I?)R?)?", raw_mode)):
        return values
    most = 1 if form[1] == "1" else 2 ** int(form[2] or 8) - 1
    values = values // (255 // most) if form[2] else values
    return most - values if form[3] else values


@lru_cache(maxsize=32)
def _table(coding: LabelCoding) -> np.ndarray:
    """Return the class id of each label value, int32 [MAX_LABEL + 1]; `_VOID` if ignored, else `_UNKNOWN`."""
    table = np.full(MAX_LABEL + 1, _UNKNOWN, np.int32)
    table[list(coding.ignored)] = _VOID
    table[list(coding.values)] = np.arange(len(coding.values))
    return table
