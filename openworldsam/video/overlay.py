"""The overlay video: drawn frames at their times, with the sound of the clip."""

from __future__ import annotations

import logging
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from openworldsam.video.frames import open_video

logger = logging.getLogger(__name__)

SOUNDS = ("aac", "mp3", "opus", "flac", "alac", "ac3", "eac3")
"""Codecs of sound that are copied, as an MP4 may have them."""
OPTIONS = {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
"""Of the VP9 encoder: constant quality, about nine times as fast as its default."""
TICKS = Fraction(1, 90_000)


class Overlay:
    """Writes an MP4: frames as VP9, and the sound of a file, copied; its loss is logged.

    Args:
        path: of the MP4.
        fps: frames per second; the last frame lasts so long.
        sound: file with the sound.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, fps: float, sound: Path | None = None) -> None:
        self._file = av.open(str(path), "w")
        self._video = self._file.add_stream("libvpx-vp9", Fraction(fps).limit_denominator(1001), options=OPTIONS)
        self._video.pix_fmt, self._video.codec_context.time_base = "yuv420p", TICKS
        self._source: InputContainer | None = None
        if sound is not None:
            self._open_sound(sound)

    def _open_sound(self, path: Path) -> None:
        """Prepare to copy the first sound of a file."""
        source = open_video(path)
        stream = source.streams.audio[0]
        codec = stream.codec_context.name if stream.codec_context else "of an unknown codec"
        if codec not in SOUNDS:
            logger.warning("the overlay has no sound: an MP4 cannot have that of %s, which is %s", path, codec)
            return
        self._source, self._packets = source, source.demux(stream)
        self._sound = self._file.add_stream_from_template(stream)

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Write a frame, uint8 [H, W, 3], RGB, and the sound until it."""
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2  # the codec needs even sizes
        if not self._video.codec_context.is_open:
            self._video.height, self._video.width = height, width
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
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
