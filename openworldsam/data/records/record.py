"""The interface of records, common to all formats of ground truth.

Shapes: H, W image size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, TypedDict

import numpy as np

from openworldsam.data.preprocessing import read_image

IMAGE_KEYS = ("file_name", "image_id", "height", "width")
"""Entries of every record."""


class Segment(TypedDict):
    """A segment of an image: id is its value in the segment map, category_id contiguous, area in pixels.

    A json's area may exceed the segment's pixels in the map, where others are drawn over it; 0 is no area.
    """

    id: int
    category_id: int
    isthing: bool
    iscrowd: int
    area: float


def semantic_map(segment_map: np.ndarray, segments: Iterable[Segment], void: int) -> np.ndarray:
    """Return the class of each pixel of a segment map [H, W], int64 [H, W]; `void` where there is no segment."""
    classes = {segment["id"]: segment["category_id"] for segment in segments}
    ids, inverse = np.unique(segment_map, return_inverse=True)
    table = np.array([classes.get(i, void) for i in ids.tolist()], dtype=np.int64)
    return table[inverse].reshape(segment_map.shape)


class Referent(NamedTuple):
    """An object that is referred to: its sentences, at least one, and its mask, bool [H, W].

    no_target: the sentences refer to nothing in the image, so the mask is empty.
    """

    sentences: tuple[str, ...]
    mask: np.ndarray
    no_target: bool = False


class Record(dict[str, Any]):
    """An image with its ground truth: Detectron2's dict, with methods that read its files.

    It has `IMAGE_KEYS` and the entries of its format. A record either has segments of classes (`segments`,
    `read_panoptic`) or, if `is_referring`, objects with sentences (`sentences`, `read_referring`).

    Attributes:
        truth_keys: entries of the ground truth, which identify the format.
        listing_step: an estimate of all prompts of a dataset lists every n-th record; above 1 if listing is slow.
    """

    __slots__ = ()
    truth_keys: ClassVar[tuple[str, ...]]
    listing_step: ClassVar[int] = 1

    @classmethod
    def fits(cls, entry: Mapping[str, Any]) -> bool:
        """Return whether a dict has the entries of this format."""
        return entry.keys() >= {*IMAGE_KEYS, *cls.truth_keys}

    @property
    def is_referring(self) -> bool:
        """Whether the ground truth is objects with sentences rather than segments of classes."""
        return False

    @property
    def is_empty(self) -> bool:
        """Whether it is known without reading a file that there is nothing to learn: no object, or crowds alone."""
        return False

    def files(self) -> list[str]:
        """List the files to read, the image first."""
        return [self["file_name"]]

    def without_ground_truth(self) -> Record:
        """Return a smaller record that can still read its image."""
        return type(self)({key: self[key] for key in IMAGE_KEYS})

    def read_image(self) -> np.ndarray:
        """Read the image, uint8 [H, W, 3]; callers must not modify it.

        Raises:
            FileNotFoundError, ValueError: it is missing, damaged or of another size than the record's.
        """
        image = read_image(self["file_name"])
        self._check_size(image, "file_name", "its annotation")
        return image

    def segments(self) -> list[Segment]:
        """List the segments, some of which may have no pixel. Reads no file unless the format lists no segments.

        Raises:
            FileNotFoundError, ValueError: see `read_panoptic`, if a file must be read.
        """
        raise NotImplementedError

    def read_panoptic(self) -> tuple[np.ndarray, list[Segment]]:
        """Read the segment map, int32 [H, W], 0 for void, which callers must not modify; and the segments.

        Raises:
            FileNotFoundError, ValueError: a file is missing, damaged, of another size, or has an unknown id or label.
        """
        raise NotImplementedError

    def read_instances(self) -> list[dict[str, Any]] | None:
        """Read objects that may overlap as COCO annotations with contiguous class ids; None if the segments are all."""
        return None

    def damaged_objects(self) -> list[str]:
        """Decode the masks, and say what is wrong with each object of which a part, or all, cannot be decoded.

        Other methods leave such parts out with a warning, and objects of which nothing is left.
        """
        return []

    def read_void(self, segment_map: np.ndarray) -> np.ndarray | None:
        """Read the pixels that Cityscapes' AP ignores, bool [H, W]; None for all of no segment.

        Raises:
            FileNotFoundError, ValueError: a file is missing, damaged or of another size.
        """
        return None

    def sentences(self) -> list[tuple[str, ...]]:
        """List the sentences of each object. Reads no file."""
        raise NotImplementedError

    def read_referring(self) -> list[Referent]:
        """Read the objects in the order of `sentences`, without those whose masks are damaged; a mask may be empty."""
        raise NotImplementedError

    def _check_size(self, pixels: np.ndarray, key: str, other: str) -> None:
        """Raise ValueError if the pixels [H, W, ...] of the file under a key have another size than the record."""
        height, width = pixels.shape[:2]
        if (height, width) != (self["height"], self["width"]):
            on_side = (width, height) == (self["height"], self["width"])
            advice = "; does the orientation in EXIF or XMP turn one of them? It must turn both, or neither" * on_side
            raise ValueError(
                f"{self[key]} is {width} x {height}, {other} is {self['width']} x {self['height']}{advice}"
            )
