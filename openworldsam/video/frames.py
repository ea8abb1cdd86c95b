"""Frames in, one at a time: from a video file or a folder of pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from openworldsam.data.preprocessing import read_image

logger = logging.getLogger(__name__)

FOLDER_FPS = 25.0
"""Frames per second of a folder of pictures, which says nothing of time."""


@dataclass(frozen=True)
class Clip:
    """A clip whose frames are read as they are asked for.

    frames: uint8 [H, W, 3], RGB, upright.
    fps: frames per second.
    length: number of frames; of a video file as its header has it, which may be wrong.
    """

    frames: Iterator[np.ndarray]
    fps: float
    length: int


def open_clip(path: str | Path) -> Clip:
    """Open a video file (whatever OpenCV's FFmpeg reads) or a folder of pictures in the order of their names.

    Numbers in names count as numbers: 9.jpg is before 10.jpg.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: it is no video, or the folder holds no picture. Reading the frames may raise it later.
    """
    path = Path(path)
    if path.is_dir():
        known = Image.registered_extensions()
        pictures = sorted((p for p in path.iterdir() if p.suffix.lower() in known), key=_by_number)
        if not pictures:
            raise ValueError(f"the folder {path} holds no picture")
        return Clip(map(read_image, pictures), FOLDER_FPS, len(pictures))
    if not path.is_file():
        raise FileNotFoundError(f"clip {path} not found")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise ValueError(f"{path} is not a readable video")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # a telephone's videos lie on their side otherwise
    length = max(0, round(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    return Clip(_video_frames(capture, path, length), capture.get(cv2.CAP_PROP_FPS) or FOLDER_FPS, length)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A name in parts, of which those of digits are ordered by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _video_frames(capture: cv2.VideoCapture, path: Path, length: int) -> Iterator[np.ndarray]:
    """Decode a video of about `length` frames; a damaged one ends early."""
    number = 0
    while (read := capture.read())[0]:
        yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
        number += 1
    capture.release()
    if not number:
        raise ValueError(f"no frame of {path} can be decoded")
    if number < 0.9 * length:
        logger.warning("%s ends after %d of %d frames; it may be damaged", path, number, length)
