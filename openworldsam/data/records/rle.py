"""Masks as run lengths and polygons, checked, as pycocotools decodes damaged ones silently or never returns."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from openworldsam.data.preprocessing import check_area

RLE = dict[str, Any]
"""{"size": [H, W], "counts": text}, compressed by pycocotools."""
Segmentation = Any
"""COCO's: a list of polygons [x0, y0, x1, y1, ...], or an RLE {"size": [H, W], "counts": list or text}."""


def encode_mask(mask: np.ndarray) -> RLE:
    """Encode a mask, bool [H, W], as COCO's compressed RLE, ready for json."""
    code = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def empty_mask(size: tuple[int, int]) -> RLE:
    """Return the run lengths of a mask of (H, W) without a pixel."""
    return {"size": list(size), "counts": [size[0] * size[1]]}


def annotate_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return the segmentation, bbox and area of a mask, bool [H, W], as in COCO's annotations."""
    code = encode_mask(mask)
    return {"segmentation": code, "bbox": mask_util.toBbox(code).tolist(), "area": int(mask.sum())}


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return the runs of a mask, bool [H, W], row by row: they alternate, starting with False, maybe of length 0."""
    values = np.concatenate([[False], mask.ravel()])
    ends = np.flatnonzero(values[1:] != values[:-1])
    return np.diff(ends, prepend=0, append=mask.size).tolist()


def to_rle(segmentation: Segmentation, size: tuple[int, int]) -> RLE:
    """Convert a segmentation in any of COCO's forms to compressed RLE.

    Args:
        segmentation: polygons, run lengths, or compressed run lengths.
        size: (H, W) of the image.

    Raises:
        ValueError: it has none of these forms, another size, more pixels than an image may have, or runs that do not
            fill the image.
    """
    check_area(*size, "a mask")  # before pycocotools allocates it
    if not isinstance(segmentation, dict):
        return _from_polygons(segmentation, size)
    if not {"size", "counts"} <= segmentation.keys():
        raise ValueError(f"an RLE without size and counts: {str(segmentation)[:80]}")
    counts = segmentation["counts"]
    if segmentation["size"] not in (list(size), tuple(size)):
        raise ValueError(f"a mask has the size {segmentation['size']}, its image {list(size)}")
    if not isinstance(counts, (list, str, bytes)):
        raise ValueError(f"the counts of a mask must be a text or a list, got {str(counts)[:80]}")
    lengths = counts if isinstance(counts, list) else _run_lengths(counts)
    if not all(isinstance(length, int) or (isinstance(length, float) and length.is_integer()) for length in lengths):
        raise ValueError(f"the runs of a mask must be whole numbers, got {str(counts)[:80]}")
    if sum(lengths) != size[0] * size[1] or min(lengths, default=0) < 0:
        raise ValueError(f"the runs of a mask have {sum(lengths)} pixels, its image {size[0] * size[1]}")
    if isinstance(counts, list):
        return mask_util.frPyObjects({"size": list(size), "counts": list(map(int, counts))}, *size)
    return {"size": list(size), "counts": counts}


def decode_mask(segmentation: Segmentation, size: tuple[int, int]) -> np.ndarray:
    """Decode a segmentation in any of COCO's forms to bool [H, W]; raises as `to_rle` does."""
    return mask_util.decode(to_rle(segmentation, size)).astype(bool)


def union_mask(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """Decode the union of all parts of a COCO segmentation.

    Args:
        segmentation: polygons in pixels, or an RLE of the image's size, compressed or not.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        bool [H, W].

    Raises:
        ValueError: no polygon with three or more points, or an RLE that is damaged or of another size.
    """
    try:
        if isinstance(segmentation, list):
            # fewer numbers are no area, and pycocotools takes four for a box
            segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
            if not segmentation:
                raise ValueError("a segmentation without a polygon of three points")
        return decode_mask(segmentation, (height, width))
    except (TypeError, AttributeError) as error:  # numbers and texts in the wrong places
        raise ValueError(f"neither polygons nor an RLE: {str(segmentation)[:80]}") from error


def usable_masks(
    objects: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> tuple[list[np.ndarray | None], list[str]]:
    """Decode the masks of the objects of an image as far as they can be decoded.

    Args:
        objects: each with a segmentation, and maybe an id.
        size: (H, W) of the image.

    Returns:
        the mask of each object, bool [H, W], without parts that cannot be decoded, None if there is no other; and what
        is wrong, by object.
    """
    masks: list[np.ndarray | None] = []
    problems = []
    for number, each in enumerate(objects, start=1):
        segmentation = each["segmentation"]
        try:
            masks.append(union_mask(segmentation, *size))
        except ValueError as error:
            problems.append(f"object {each.get('id', number)}: {error}")
            parts = []
            for polygon in segmentation if isinstance(segmentation, list) else ():
                with contextlib.suppress(ValueError):
                    parts.append(union_mask([polygon], *size))
            masks.append(np.any(parts, axis=0) if parts else None)
    return masks, problems


def _from_polygons(polygons: Any, size: tuple[int, int]) -> RLE:
    if not polygons:
        raise ValueError("a segmentation without a polygon")
    far = 10 * max(size)  # pycocotools allocates this length; NaN fails too
    try:
        near = all(abs(number) <= far for polygon in polygons for number in polygon)
        code = mask_util.merge(mask_util.frPyObjects(polygons, *size)) if near else None
    except Exception as error:  # of its own plain Exception up to TypeError, with texts about its arguments
        raise ValueError(f"neither polygons nor an RLE: {str(polygons)[:80]}") from error
    if code is None:
        raise ValueError(f"a polygon far outside an image of {size[0]} x {size[1]} pixels")
    return code


def _run_lengths(counts: str | bytes) -> list[int]:
    """Unpack pycocotools' run lengths: 5 bits per character, least significant first; from the third on, each is the
    difference to the last but one."""
    lengths: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - ord("0")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more characters follow
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:  # pycocotools would read past the end
        raise ValueError("the counts of a mask are cut short")
    return lengths
