"""Datasets whose ground truth is one label image per picture: the value of a pixel says its class.

Shapes: H, W image size.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from PIL import Image

from openworldsam.data.datasets.coco import Category, Segment, warn_of_missing

logger = logging.getLogger(__name__)

MAX_LABEL = 65_535
_VOID, _UNKNOWN = -1, -2
_ROTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF's orientation, and its values that swap width and height


class LabelCoding(NamedTuple):
    """What the values of a label image mean: values[c] is class c, ignored ones are void, any other is an error."""

    values: tuple[int, ...]
    is_thing: tuple[bool, ...]
    ignored: frozenset[int]

    @classmethod
    def of(cls, categories: Sequence[Category], ignored: Iterable[int], offset: int = 0) -> LabelCoding:
        """The coding in which a class has the value id + offset; where a value is ignored too, it is the class."""
        values = tuple(category.id + offset for category in categories)
        return cls(values, tuple(c.is_thing for c in categories), frozenset(ignored) - set(values))


class LabelRecord(TypedDict):
    """A picture and its label image, which both are read upright; the coding is shared by the whole dataset."""

    file_name: str
    image_id: int
    height: int
    width: int
    sem_seg_file_name: str
    coding: LabelCoding


def load_labels(
    name: str, pairs: Sequence[tuple[Path, Path]], coding: LabelCoding, source: str | Path, hint: str = ""
) -> list[LabelRecord]:
    """Records of (picture, label image) pairs, in their order; of each picture the head is read, for its size.

    An image's id tells it from the images of datasets of other names.

    Missing files are counted in a warning and their records stay, so that no figure is of fewer images unnoticed; so do
    those of pictures that cannot be read, with a size of 0.

    Raises:
        FileNotFoundError: there is no pair, or every single picture or label image is missing; names the source.
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
    """(H, W) of a picture once it is upright; (0, 0) if its head cannot be read, which reading it will complain of."""
    try:
        with Image.open(path) as image:
            sideways = "exif" in image.info and image.getexif().get(_ROTATION) in _SIDEWAYS
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0
    return (width, height) if sideways else (height, width)


def read_labels(path: str | Path) -> np.ndarray:
    """The values of a label image, integers [H, W]: grey of 1 to 16 bits, or the indices of a palette.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, has several channels, or values outside 0..65535.
    """
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"label image {path} not found") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises these for damaged files
        raise ValueError(f"{path} is not a readable label image: {error}") from error
    if labels.ndim != 2 or labels.dtype.kind not in "uib":
        raise ValueError(f"{path} is no label image: one channel of whole numbers, got {labels.shape} {labels.dtype}")
    labels = labels.astype(np.int32)
    if labels.size and not 0 <= labels.min() <= labels.max() <= MAX_LABEL:
        raise ValueError(f"{path} has the values {labels.min()} to {labels.max()}, labels are 0 to {MAX_LABEL}")
    return labels


def decode_labels(labels: np.ndarray, coding: LabelCoding, path: str | Path) -> np.ndarray:
    """Contiguous class ids from the values of a label image.

    Args:
        labels: [H, W], of `read_labels`.
        coding: what its values mean.
        path: for the message.

    Returns:
        int32 [H, W], -1 where void.

    Raises:
        ValueError: a value is neither a class nor ignored; names file and value.
    """
    classes = _table(coding)[labels]
    if (unknown := classes == _UNKNOWN).any():
        value, number = int(labels[unknown][0]), int(unknown.sum())
        known = f"the {len(coding.values)} classes are {min(coding.values)} to {max(coding.values)}"
        raise ValueError(f"{path} has the label {value} ({number} such pixels), which is no class: {known}")
    return classes


@lru_cache(maxsize=32)
def _table(coding: LabelCoding) -> np.ndarray:
    table = np.full(MAX_LABEL + 1, _UNKNOWN, np.int32)
    table[list(coding.ignored)] = _VOID
    table[list(coding.values)] = np.arange(len(coding.values))
    return table


def label_segments(record: Mapping[str, Any]) -> tuple[np.ndarray, list[Segment]]:
    """The ground truth of a `LabelRecord` as segments: each class that is there is one, its id the class id + 1.

    Returns:
        int32 [H, W], segment ids, 0 for void; and the segments.

    Raises:
        FileNotFoundError, ValueError: the label image is missing, damaged, of another size, or has an unknown value.
    """
    path, coding = record["sem_seg_file_name"], record["coding"]
    labels = read_labels(path)
    if labels.shape != (record["height"], record["width"]):
        raise ValueError(
            f"{path} is {labels.shape[1]} x {labels.shape[0]}, its image is {record['width']} x {record['height']}"
        )
    ids = decode_labels(labels, coding, path) + 1
    return ids, [
        Segment(id=i, category_id=i - 1, isthing=coding.is_thing[i - 1], iscrowd=False, area=area)
        for i, area in enumerate(np.bincount(ids.ravel()).tolist())
        if i and area
    ]
