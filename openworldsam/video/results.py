"""Result files of a clip.

overlay.mp4            the masks drawn over the clip; VP9, which browsers play
masks/000000.png       16-bit object id per pixel of each frame, 0 = background
frames.jsonl           one line per frame: ids, scores and areas of the visible objects
tracks.json            all objects: id, prompt, score, first and last frame; provenance of the weights
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from openworldsam.utils.files import save_json, save_png
from openworldsam.video.predictor import Track
from openworldsam.video.trackers import TrackedFrame
from openworldsam.visualization import LabelledMasks, draw_masks


class ResultWriter:
    """Writes the results of a video of `fps` frames per second, frame by frame; a context manager that closes it.

    Raises:
        ValueError: the folder has results already.
        OSError: a file cannot be written.
    """

    def __init__(self, folder: Path, fps: float) -> None:
        if (lines := folder / "frames.jsonl").exists() and lines.stat().st_size:
            raise ValueError(f"{folder} has results already; remove them or choose another folder")
        self.folder, self.fps = folder, fps
        self._video: cv2.VideoWriter | None = None
        self._lines: IO[str]

    def __enter__(self) -> ResultWriter:
        (self.folder / "masks").mkdir(parents=True, exist_ok=True)
        self._lines = (self.folder / "frames.jsonl").open("w")
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        if self._video is not None:
            self._video.release()

    def write(self, number: int, image: np.ndarray, frame: TrackedFrame, tracks: Sequence[Track]) -> None:
        """Write one frame: image uint8 [H, W, 3], RGB; `tracks` are all objects so far, in order of id."""
        file = f"masks/{number:06d}.png"
        save_png(self.folder / file, frame.id_map)
        areas = np.bincount(frame.id_map.ravel(), minlength=len(tracks) + 1).tolist()
        ids = sorted(frame.scores)
        objects = [{"id": id_, "score": round(frame.scores[id_], 4), "area": areas[id_]} for id_ in ids]
        self._lines.write(json.dumps({"frame": number, "file": file, "objects": objects}) + "\n")
        drawn = LabelledMasks(
            task="semantic",
            prompts=tuple(f"{track.id} {track.prompt}" for track in tracks),  # one each, so that colours stay the same
            masks=frame.id_map == np.array(ids, np.uint16)[:, None, None],
            scores=np.array([frame.scores[id_] for id_ in ids], np.float32),
            prompt_index=np.array(ids, np.int64) - 1,
        )
        self._write_overlay(draw_masks(image, drawn))

    def _write_overlay(self, image: np.ndarray) -> None:
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2  # the codec needs even sizes
        if self._video is None:
            path = str(self.folder / "overlay.mp4")
            self._video = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"vp09"), self.fps, (width, height))
            if not self._video.isOpened():
                raise OSError(f"{path} cannot be written: this OpenCV has no VP9, or the folder is not writable")
        self._video.write(cv2.cvtColor(image[:height, :width], cv2.COLOR_RGB2BGR))

    def write_tracks(self, tracks: Sequence[Track], about: dict[str, Any]) -> None:
        """Write all objects of the clip, after the entries of `about`."""
        save_json(self.folder / "tracks.json", {**about, "tracks": [vars(track) for track in tracks]}, indent=1)
