"""The overlay video: drawn frames at their times, with the sound of the clip."""

from __future__ import annotations

import contextlib
import logging
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from openworldsam.utils.files import output_file
from openworldsam.video.frames import open_video

logger = logging.getLogger(__name__)

OPTIONS = {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
"""Of the VP9 encoder: constant quality, about nine times as fast as its default."""
TICKS = Fraction(1, 90_000)


class Overlay:
    """Writes an MP4: frames as VP9, and the sound of a file, copied; its loss is logged.

    Args:
        path: of the MP4.
        fps: frames per second; the last frame lasts so long.
        size: (H, W) of the frames; an odd one loses its last row or column, as the codec needs even sizes.
        sound: file with the sound.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int], sound: Path | None = None) -> None:
        self._height, self._width = size[0] // 2 * 2, size[1] // 2 * 2
        self._source: InputContainer | None = None
        self._open(path, fps)
        if sound is None:
            return
        try:
            self._source = open_video(sound)
            stream = self._source.streams.audio[0]
            self._packets, self._sound = self._source.demux(stream), self._file.add_stream_from_template(stream)
            self._file.start_encoding()
        except (av.FFmpegError, ValueError, AttributeError) as error:  # the last, of a codec that FFmpeg does not know
            logger.warning("the overlay has no sound: an MP4 cannot have that of %s: %s", sound, error)
            self._source = None
            with contextlib.suppress(av.FFmpegError):
                self._file.close()
            self._open(path, fps)

    def _open(self, path: Path, fps: float) -> None:
        self._file = av.open(str(output_file(path)), "w")
        self._video = self._file.add_stream("libvpx-vp9", Fraction(fps).limit_denominator(1001), options=OPTIONS)
        self._video.pix_fmt, self._video.codec_context.time_base = "yuv420p", TICKS
        self._video.height, self._video.width = self._height, self._width

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Write a frame, uint8 [H, W, 3], RGB, and the sound until it."""
        even = np.ascontiguousarray(image[: self._height, : self._width])
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame.pts, frame.time_base = round(seconds / TICKS), TICKS
        self._file.mux(self._video.encode(frame))
        self._copy_sound(seconds)

    def _copy_sound(self, seconds: float) -> None:
        """Copy the sound up to a time."""
        if self._source is None:
            return
        start = (self._source.start_time or 0) / av.time_base
        try:
            for packet in self._packets:
                if packet.dts is None or packet.pts is None:  # the end
                    continue
                after = packet.pts * packet.time_base - start
                offset = round(start / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, self._sound
                self._file.mux(packet)
                if after > seconds:
                    break
        except av.FFmpegError as error:
            logger.warning("the sound of the overlay ends at %.2f s: %s", seconds, error.strerror)
            self._source = None

    def close(self, *, all_sound: bool) -> None:
        """Finish the file, with the rest of the sound or without."""
        if all_sound:
            self._copy_sound(math.inf)
        self._file.mux(self._video.encode(None))
        self._file.close()
