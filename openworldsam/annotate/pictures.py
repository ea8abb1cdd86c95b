"""The pictures of a folder, read ahead; what cannot be read is told apart and stops nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from openworldsam.data.datasets.coco import MAX_SIDE
from openworldsam.data.datasets.custom import IMAGE_SUFFIXES
from openworldsam.data.preprocessing import read_image
from openworldsam.evaluation.examples import Unreadable

_NOT_IN_XML = re.compile("[\x00-\x1f\ud800-\udfff\ufffe\uffff]")


class Stamp(NamedTuple):
    """By which a file is known to be the same: its size in bytes, and when it was changed in nanoseconds."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Of a file; (0, 0) where there is none, as at the end of a broken link."""
        try:
            status = path.stat()
        except OSError:
            return cls(0, 0)
        return cls(status.st_size, status.st_mtime_ns)


class Picture(NamedTuple):
    """A picture that was read: its path in the folder, uint8 [H, W, 3], and the stamp of its file."""

    name: str
    image: np.ndarray
    stamp: Stamp


def find_pictures(folder: Path, output: Path) -> list[str]:
    """The pictures in a folder and those below it, as paths within it, sorted; without hidden ones and the output's.

    Links that lead nowhere are among them, to be listed as unreadable.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
        ValueError: the output is that very folder, or two pictures differ in their suffix alone, so that their results
            would overwrite each other.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    root, left_out = folder.resolve(), output.resolve()
    if root == left_out:
        raise ValueError(f"{output} is the folder of the pictures; use another --output")
    within = [path.relative_to(root) for path in root.rglob("*") if left_out not in path.parents]
    names = sorted(
        path.as_posix()
        for path in within
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and ((root / path).is_file() or ((root / path).is_symlink() and not (root / path).exists()))
    )
    if not names:
        raise FileNotFoundError(f"{folder} has no picture ({' '.join(IMAGE_SUFFIXES)})")
    stem, count = Counter(Path(name).with_suffix("") for name in names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{folder} has {count} pictures named {stem}; their results would overwrite each other")
    return names


class Pictures(Dataset[Picture | Unreadable]):
    """Some pictures of a folder.

    Args:
        folder: that they are in.
        names: their paths within it.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Picture | Unreadable:
        name = self.names[index]
        try:
            if _NOT_IN_XML.search(name):
                raise ValueError("its name has characters that no annotation file can hold")
            stamp = Stamp.of(self.folder / name)
            image = read_image(self.folder / name)
            if max(image.shape) > MAX_SIDE:
                raise ValueError(f"it has a side of more than {MAX_SIDE:,} pixels")
            return Picture(name, image, stamp)
        except Exception as error:  # decoders raise what they please about damaged files
            return Unreadable(name, str(error) or type(error).__name__)
