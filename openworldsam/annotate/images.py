"""Images of a folder, loaded ahead by DataLoader workers; an unreadable one is reported and stops nothing."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from openworldsam.data.preprocessing import IMAGE_SUFFIXES, read_image
from openworldsam.data.records.coco_json import MAX_SIDE
from openworldsam.evaluation.examples import Unreadable
from openworldsam.utils.files import find_files
from openworldsam.utils.launch import item_error

OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".jxl")
"""Of images in other formats, which are listed with the advice to convert them."""
_NOT_IN_XML = re.compile("[\x00-\x1f\ud800-\udfff\ufffe\uffff]")


class LoadedImage(NamedTuple):
    """An image uint8 [H, W, 3], its path within the folder, and its `file_version`."""

    name: str
    pixels: np.ndarray
    version: tuple[int, int]


def file_version(path: Path) -> tuple[int, int]:
    """Identify a file version by size in bytes and modification time in ns; (0, 0) if it is inaccessible."""
    try:
        status = path.stat()
    except OSError:  # such as for a broken link
        return 0, 0
    return status.st_size, status.st_mtime_ns


def find_images(folder: Path, output: Path) -> list[str]:
    """List the images in a folder and its subfolders as sorted relative paths, without hidden ones and the output.

    Broken links and `OTHER_SUFFIXES` are included, so that they are reported; not `a.heic` where there is an `a.jpg`.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: the output is the folder itself, or two images differ only in their suffix, so that their results
            would overwrite each other.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    root, excluded = Path(os.path.realpath(folder)), Path(os.path.realpath(output))
    if root == excluded:
        raise ValueError(f"{output} is the folder of the images; use another --output")

    def below(suffixes: Sequence[str]) -> list[Path]:
        return [path.relative_to(root) for path in find_files(root, suffixes) if excluded not in path.parents]

    images = below(IMAGE_SUFFIXES)
    stems = Counter(path.with_suffix("") for path in images)
    for stem, count in stems.most_common(1):
        if count > 1:
            raise ValueError(f"{folder} has {count} images named {stem}; their results would overwrite each other")
    others = {path.with_suffix(""): path for path in below(OTHER_SUFFIXES)}
    images += [path for stem, path in others.items() if stem not in stems]
    if not images:
        raise FileNotFoundError(f"{folder} has no image ({' '.join(IMAGE_SUFFIXES)})")
    return sorted(path.as_posix() for path in images)


class FolderImages(Dataset[LoadedImage | Unreadable]):
    """Loads images of a folder, given their paths within it."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LoadedImage | Unreadable:
        name = self.names[index]
        try:
            if _NOT_IN_XML.search(name):
                raise ValueError("its name has characters that no annotation file can hold")
            version = file_version(self.folder / name)
            pixels = read_image(self.folder / name)
            if max(pixels.shape) > MAX_SIDE:
                raise ValueError(f"it has a side of more than {MAX_SIDE:,} pixels")
            return LoadedImage(name, pixels, version)
        except Exception as error:
            return Unreadable(name, item_error(error))
