"""Pictures that strangers give: checked before they are decoded, and gone from the disk afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Container
from pathlib import Path

import numpy as np
from PIL import Image

from openworldsam.data.preprocessing import read_image

MAX_BYTES = 20 * 2**20
"""Of a file."""
MAX_PIXELS = 16_000_000
"""Of a picture: with 12 million, a telephone's, a hundred masks take 1.2 GB."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""That are tried. Pillow knows more, some of which run other programs."""


def read_upload(path: Path) -> np.ndarray:
    """A picture that somebody gave; messages name the file alone, not where it lies.

    Args:
        path: of the file.

    Returns:
        uint8 [H, W, 3], as `read_image`.

    Raises:
        ValueError: it is too large, or no picture that can be read.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path.name} has {size / 2**20:.1f} MB; at most {MAX_BYTES / 2**20:.0f} MB are read")
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise ValueError(f"{path.name} has too many pixels; at most {MAX_PIXELS / 1e6:g} million are read") from None
    except (OSError, SyntaxError):  # Pillow raises both for damaged files
        raise ValueError(f"{path.name} is not a picture that can be read ({', '.join(FORMATS)} can)") from None
    if width * height > MAX_PIXELS:
        most = f"at most {MAX_PIXELS / 1e6:g} million are read: scale it down first"
        raise ValueError(f"{path.name} has {width} x {height} pixels; {most}")
    try:
        return read_image(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None


def discard(path: Path) -> None:
    """Delete an upload and the folder that was its own; nothing else, whatever path a request names."""
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()


def sweep(folder: Path, keep: Container[Path], seconds: float) -> None:
    """Delete uploads that no request took away, as when they were too large or their browser was closed.

    Args:
        folder: of all uploads.
        keep: files that stay.
        seconds: the age from which on they go.
    """
    latest = time.time() - seconds
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a request was quicker
            if path not in keep and path.is_file() and path.stat().st_ctime <= latest:
                path.unlink()
