"""Cityscapes' own files of instances: *_gtFine_instanceIds.png, and predictions as cityscapesScripts reads them.

Shapes: H, W image size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openworldsam.data.prepare.panoptic import read_cityscapes
from openworldsam.data.records.labels import LABEL_SUFFIXES, read_labels
from openworldsam.data.records.rle import encode_mask
from openworldsam.utils.files import find_files, named

_SUFFIX = "_gtFine_instanceIds"


class Regions(NamedTuple):
    """Ground truth of an image, as `CityscapesAP.update` takes it.

    segment_map: int [H, W]; segments: (id, category id, iscrowd); void: bool [H, W].
    """

    segment_map: np.ndarray
    segments: list[tuple[int, int, int]]
    void: np.ndarray


def find_truths(folder: Path) -> dict[str, Path]:
    """Find the instanceIds below a folder by the name of their image, such as "ulm_000000_000019".

    Raises:
        FileNotFoundError: there are none.
    """
    paths = (path for path in find_files(folder, LABEL_SUFFIXES) if path.stem.endswith(_SUFFIX))
    if not (truths := {path.stem.removesuffix(_SUFFIX): path for path in paths}):
        raise FileNotFoundError(
            f"{folder} has no *{_SUFFIX}.png; it must be Cityscapes' ground truth, such as gtFine/val"
        )
    return truths


def read_truth(path: Path) -> Regions:
    """Read instanceIds; a caravan or trailer with a number is in no segment and not void."""
    ((values, regions),) = read_cityscapes([path])
    segment_map = np.where(np.isin(values, list(regions)), values, 0)
    segments = [(value, region.category_id, int(region.iscrowd)) for value, region in regions.items()]
    return Regions(segment_map, segments, (segment_map == 0) & (values < 1000))


def read_predictions(folder: Path, names: Iterable[str]) -> Iterator[list[Mapping[str, Any]]]:
    """Read the text files of images by their names: a line per instance, with its mask, label id and confidence.

    Yields:
        the instances of each image, in COCO's results format.

    Raises:
        FileNotFoundError: an image has no text file, or a mask is missing.
        ValueError: an image has several, a line is damaged, or a mask lies outside the folder.
    """
    texts = find_files(folder, (".txt",))
    for name in names:
        found = [path for path in texts if path.name.startswith(name)]
        if len(found) != 1:
            said = f"several predictions of {name}" if found else f"no prediction of {name}: a file {name}*.txt"
            raise (ValueError if found else FileNotFoundError)(f"{folder} has {said}")
        with named(found[0]):
            lines = found[0].read_text(encoding="utf-8").splitlines()
            yield [_instance(folder, found[0].parent, line) for line in lines]


def _instance(root: Path, folder: Path, line: str) -> dict[str, Any]:
    if len(words := line.split()) != 3:
        raise ValueError(f"a line has a path, a label id and a confidence, got {line!r:.100}")
    mask, (label, score) = folder / words[0], map(float, words[1:])
    if not Path(os.path.realpath(mask)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"{words[0]} lies outside of {root}")
    return {"category_id": int(label), "score": score, "segmentation": encode_mask(read_labels(mask) != 0)}
