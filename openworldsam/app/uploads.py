"""Uploaded images: checked before decoding, deleted afterwards.

A server's folder is `openworldsam-app-<machine>-<process>-<random>` among the temporary files. Below `uploads` in it,
each upload has a folder of its own, whose random name only the answer to the upload tells.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from openworldsam.data.preprocessing import open_image, read_image
from openworldsam.utils.files import MACHINE, is_left

MAX_BYTES = 20 * 2**20
"""Per file."""
MAX_PIXELS = 16_000_000
"""Per image: for the 12 million pixels of a phone's camera, 100 masks take 1.2 GB."""
MAX_WAITING = 64
"""Uploads that no request has taken yet."""
_FOLDER = re.compile(r"openworldsam-app-([0-9a-f]{8})-(\d{1,9})-\w{8}")


class Uploads:
    """Uploads that no request has taken yet.

    As a path it is the folder for the upload of the current HTTP request; in others, that of all files to serve.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve() / "uploads"
        self._own = ContextVar("own", default="")
        self.folder.mkdir()

    def __fspath__(self) -> str:
        return str(self.folder / own if (own := self._own.get()) else self.folder.parent)

    __str__ = __fspath__

    def begin(self) -> bool:
        """Choose a new folder for the current HTTP request; False if too many uploads wait."""
        self._own.set(secrets.token_hex(16))
        return len(os.listdir(self.folder)) < MAX_WAITING

    def take(self, upload: object) -> tuple[np.ndarray, str]:
        """Read the image of a request's file, uint8 [H, W, 3], and delete the file; return the image and its name.

        Raises:
            ValueError: it is no upload, but perhaps another file or an address; or see `read_upload`.
        """
        path = Path()
        with contextlib.suppress(OSError, ValueError):  # what no path can hold
            path = Path(os.path.realpath(str(upload.get("path")) if isinstance(upload, dict) else ""))
        if path.parents[2:3] != (self.folder,):
            raise ValueError("this is no upload: drop a file")
        try:
            return read_upload(path), path.name
        except FileNotFoundError:
            raise ValueError("the upload is gone, as it waited for too long: drop the file again") from None
        finally:
            shutil.rmtree(path.parents[1], ignore_errors=True)

    def sweep(self, seconds: float) -> None:
        """Delete uploads of a minimum age, for example those of a closed browser."""
        latest = time.time() - seconds
        for folder in self.folder.glob("*"):
            with contextlib.suppress(OSError):  # a request was faster
                if max(path.stat().st_mtime for path in [folder, *folder.rglob("*")]) <= latest:
                    shutil.rmtree(folder)


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """Make a private folder for a server, and delete it in the end; those that killed servers left are deleted now."""
    for path in Path(tempfile.gettempdir()).glob("openworldsam-app-*"):
        named = _FOLDER.fullmatch(path.name)
        if named and not path.is_symlink() and is_left(path, named[1], int(named[2])):
            shutil.rmtree(path, ignore_errors=True)  # which fails for those of other users
    prefix = f"openworldsam-app-{MACHINE}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def read_upload(path: Path) -> np.ndarray:
    """Read an uploaded image with `read_image`: uint8 [H, W, 3].

    Raises:
        FileNotFoundError: it is gone.
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
