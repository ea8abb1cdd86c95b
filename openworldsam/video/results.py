"""What is written of a clip: a video of the masks, their id maps, and who is who.

overlay.mp4            VP9, which browsers play
masks/000000.png       16-bit ids of the pixels of each frame, 0 is nobody's
frames.jsonl           a line per frame: the objects that are seen, their scores and areas
tracks.json            the objects: ids, prompts, scores, first and last frame; and where the weights come from
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image

from openworldsam.utils.files import save_atomically
from openworldsam.video.predictor import Track, TrackedFrame
from openworldsam.visualization import LabelledMasks, draw_masks


class ResultWriter:
    """Writes frame by frame; a context, so that the video is closed whatever happens.

    Args:
        folder: of the results; must not hold others yet.
        fps: frames per second of the video.

    Raises:
        ValueError: the folder holds results already.
        OSError: something cannot be written.
    """

    def __init__(self, folder: Path, fps: float) -> None:
        if (lines := folder / "frames.jsonl").exists() and lines.stat().st_size:
            raise ValueError(f"{folder} holds results already; remove them or choose another folder")
        self.folder, self.fps = folder, fps
        self._video: cv2.VideoWriter | None = None
        self._lines: IO[str]

    def __enter__(self) -> ResultWriter:
        (self.folder / "masks").mkdir(parents=True, exist_ok=True)
        self._lines = (self.folder / "frames.jsonl").open("w")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        if self._video is not None:
            self._video.release()

    def write(self, number: int, image: np.ndarray, frame: TrackedFrame, tracks: Sequence[Track]) -> None:
        """Add a frame.

        Args:
            number: of the frame.
            image: uint8 [H, W, 3], RGB.
            frame: what is seen in it.
            tracks: all objects so far, in order of id.
        """
        file = f"masks/{number:06d}.png"
        save_atomically(self.folder / file, partial(Image.fromarray(frame.id_map).save, format="PNG"))
        areas = np.bincount(frame.id_map.ravel(), minlength=len(tracks) + 1).tolist()
        seen = [
            {"id": track, "score": round(score, 4), "area": areas[track]}
            for track, score in sorted(frame.scores.items())
        ]
        self._lines.write(json.dumps({"frame": number, "file": file, "objects": seen}) + "\n")
        self._write_picture(draw_masks(image, drawing(frame, tracks)))

    def _write_picture(self, picture: np.ndarray) -> None:
        height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2  # codecs want even sizes
        if self._video is None:
            path = str(self.folder / "overlay.mp4")
            self._video = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"vp09"), self.fps, (width, height))
            if not self._video.isOpened():
                raise OSError(f"{path} cannot be written: this OpenCV has no VP9, or the folder is not writable")
        self._video.write(cv2.cvtColor(picture[:height, :width], cv2.COLOR_RGB2BGR))

    def write_tracks(self, tracks: Sequence[Track], about: dict[str, Any]) -> None:
        """Write the objects of the whole clip, and what else is to be said about it."""
        content = json.dumps({**about, "tracks": [vars(track) for track in tracks]}, indent=1)
        save_atomically(self.folder / "tracks.json", lambda path: path.write_text(content))


def drawing(frame: TrackedFrame, tracks: Sequence[Track]) -> LabelledMasks:
    """A frame for `draw_masks`: every object is a prompt of its own, so that its colour stays the same."""
    seen = sorted(frame.scores)
    return LabelledMasks(
        task="semantic",
        prompts=tuple(f"{track.id} {track.prompt}" for track in tracks),
        masks=frame.id_map == np.array(seen, np.uint16)[:, None, None],
        scores=np.array([frame.scores[track] for track in seen], np.float32),
        prompt_index=np.array(seen, np.int64) - 1,
    )
