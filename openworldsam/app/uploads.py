"""Uploaded images: checked before decoding, deleted afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Container
from pathlib import Path

import numpy as np

from openworldsam.data.preprocessing import open_image, read_image

MAX_BYTES = 20 * 2**20
"""Per file."""
MAX_PIXELS = 16_000_000
"""Per image: for the 12 million pixels of a phone's camera, 100 masks take 1.2 GB."""


def read_upload(path: Path) -> np.ndarray:
    """Read an uploaded image with `read_image`: uint8 [H, W, 3].

    Raises:
        ValueError: too large, or not a readable image; the message names the file without its folder.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path.name} has {size / 2**20:.1f} MB; the limit is {MAX_BYTES / 2**20:.0f} MB")
    try:
        with open_image(path) as image:
            width, height = image.size
        if width * height > MAX_PIXELS:
            limit = f"the limit is {MAX_PIXELS / 1e6:g} million: scale it down first"
            raise ValueError(f"{path} has {width} x {height} pixels; {limit}")
        return read_image(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None


def discard(path: Path) -> None:
    """Delete an upload and its folder if that is empty then; nothing else, whatever path a request names."""
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()


def sweep(folder: Path, keep: Container[Path], seconds: float) -> None:
    """Delete uploads of a minimum age that no request took, for example too large ones or those of a closed browser."""
    latest = time.time() - seconds
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a request was faster
            if path not in keep and path.is_file() and path.stat().st_ctime <= latest:
                path.unlink()
