"""Frames of a clip, read one at a time from a video file or a folder of images."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from openworldsam.data.preprocessing import read_image

logger = logging.getLogger(__name__)

FOLDER_FPS = 25.0
"""Frame rate assumed for a folder of images."""


class Clip(NamedTuple):
    """A clip whose frames are read on demand.

    frames: uint8 [H, W, 3], RGB, upright.
    fps: frames per second.
    length: number of frames; for a video file as its header says, which may be wrong.
    """

    frames: Iterator[np.ndarray]
    fps: float
    length: int


def open_clip(path: str | Path) -> Clip:
    """Open a video file (any that OpenCV's FFmpeg reads) or a folder of images, ordered by name.

    Numbers within names count by value: 9.jpg comes before 10.jpg.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: not a video, or no image in the folder; also while reading, if a frame cannot be decoded.
    """
    path = Path(path)
    if path.is_dir():
        known = Image.registered_extensions()
        images = sorted((p for p in path.iterdir() if p.suffix.lower() in known), key=_by_number)
        if not images:
            raise ValueError(f"the folder {path} has no image")
        return Clip(map(read_image, images), FOLDER_FPS, len(images))
    if not path.is_file():
        raise FileNotFoundError(f"clip {path} not found")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise ValueError(f"{path} is not a readable video")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # otherwise a phone's videos lie on their side
    length = max(0, round(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    return Clip(_video_frames(capture, path, length), capture.get(cv2.CAP_PROP_FPS) or FOLDER_FPS, length)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key in which runs of digits count by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _video_frames(capture: cv2.VideoCapture, path: Path, length: int) -> Iterator[np.ndarray]:
    """Decode a video of about `length` frames; warn if it ends early."""
    number = 0
    while (read := capture.read())[0]:
        yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
        number += 1
    capture.release()
    if not number:
        raise ValueError(f"no frame of {path} can be decoded")
    if number < 0.9 * length:
        logger.warning("%s ends after %d of %d frames; it may be damaged", path, number, length)
