"""Frames of a clip, read one at a time from a video file or a folder of images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

from openworldsam.data.preprocessing import IMAGE_SUFFIXES, check_area, read_image
from openworldsam.utils.files import regular_file
from openworldsam.utils.launch import item_error

FOLDER_FPS = 25.0
"""Frame rate assumed for a folder of images."""
FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif")
"""Containers that are opened, by FFmpeg's names. FFmpeg has more; some are playlists, which open other files."""


class Clip(NamedTuple):
    """A clip whose frames are read on demand.

    frames: uint8 [H, W, 3], RGB, upright; a damaged one is passed over.
    fps: frames per second, on average.
    length: number of frames as the header says, 0 if it does not.
    times: seconds from the start of the clip of each frame read so far; they need not be evenly spaced.
    lost: what has been passed over so far, and why.
    sound: the file, if it has any.
    """

    frames: Iterator[np.ndarray]
    fps: float
    length: int
    times: list[float]
    lost: list[str]
    sound: Path | None = None


def open_clip(path: str | Path) -> Clip:
    """Open a video file in one of `FORMATS` or a folder of images, ordered by name.

    Numbers within names count by value: 9.jpg comes before 10.jpg. Hidden files and those without an image's suffix are
    no frames.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: not a video, or no image in the folder; also while reading, if no frame can be decoded.
    """
    path, times, lost = Path(path), list[float](), list[str]()
    if path.is_dir():
        files = (each for each in path.iterdir() if not each.is_dir() and not each.name.startswith("."))
        images = [each for each in files if each.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise ValueError(f"the folder {path} has no image ({' '.join(IMAGE_SUFFIXES)})")
        frames = _folder_frames(sorted(images, key=_by_number), times, lost)
        return Clip(frames, FOLDER_FPS, len(images), times, lost)
    container = open_video(path)
    if not container.streams.video or not container.streams.video[0].codec_context:
        raise ValueError(f"{path} has no video, or one of an unknown codec")
    stream = container.streams.video[0]
    check_area(stream.height, stream.width, path)
    fps = float(stream.average_rate or stream.guessed_rate or FOLDER_FPS)
    frames = _video_frames(container, path, fps, times, lost)
    return Clip(frames, fps, stream.frames, times, lost, path if container.streams.audio else None)


def open_video(path: Path) -> InputContainer:
    """Open a file in one of `FORMATS`; raises as `open_clip` does."""
    try:
        regular_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"clip {path} not found") from None
    allowed = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    try:
        return av.open(str(path), options=allowed, metadata_errors="replace")
    except av.FFmpegError as error:
        raise ValueError(f"{path} is not a readable video: {error.strerror}") from error


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key in which runs of digits count by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _folder_frames(images: list[Path], times: list[float], lost: list[str]) -> Iterator[np.ndarray]:
    for position, path in enumerate(images):
        try:
            image = read_image(path)
        except (ValueError, OSError) as error:
            lost.append(item_error(error))
            continue
        times.append(position / FOLDER_FPS)
        yield image
    if not times:
        raise ValueError(f"no frame can be read: {lost[0]}")


def _video_frames(
    container: InputContainer, path: Path, fps: float, times: list[float], lost: list[str]
) -> Iterator[np.ndarray]:
    """Decode a video; it counts as a loss if it ends before its header says."""
    start = (container.start_time or 0) / av.time_base
    with container:
        for frame in _decoded(container, lost):
            after = times[-1] + 1 / fps if times else 0.0
            seconds = after if frame.time is None else frame.time - start
            times.append(max(seconds, 0.0) if not times or seconds > times[-1] else after)
            yield _upright(frame)
        if not times:
            raise ValueError(f"no frame of {path} can be decoded" + "".join(f" ({why})" for why in lost[:1]))
        expected, duration = container.streams.video[0].frames, (container.duration or 0) / av.time_base
        # an edit list may leave frames out, but then shortens the duration too
        if len(times) + len(lost) < 0.9 * expected and times[-1] < 0.9 * duration:
            lost.append(f"the clip ends after {len(times)} of {expected} frames; it may be damaged")


def _decoded(container: InputContainer, lost: list[str]) -> Iterator[VideoFrame]:
    """Decode packet by packet, as damage is an error of one packet alone."""
    packets = container.demux(video=0)
    while True:
        seconds = None
        try:
            if (packet := next(packets, None)) is None:
                return
            seconds = packet.pts and float(packet.pts * packet.time_base)
            yield from packet.decode()
        except av.FFmpegError as error:
            place = "the rest of the file" if seconds is None else f"the frame at {seconds:.2f} s"
            lost.append(f"{place}: {error.strerror}")


def _upright(frame: VideoFrame) -> np.ndarray:
    """Return the pixels of a frame as players show it: turned and mirrored by its display matrix."""
    image = frame.to_ndarray(format="rgb24")
    side_data: Any = frame.side_data
    if Type.DISPLAYMATRIX in side_data:
        # the pixel x, y is shown at a x + c y + ..., b x + d y + ... (ISO/IEC 14496-12, 6.2.2)
        a, b, _, c, d = np.frombuffer(side_data[Type.DISPLAYMATRIX], np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            image, a, d = image.transpose(1, 0, 2), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)
