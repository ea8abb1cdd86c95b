"""Result files of a clip.

overlay.mp4            the masks drawn over the clip, with its times and sound; VP9, which browsers play
masks/000000.png       16-bit object id per pixel of each frame, 0 = background
frames.jsonl           one line per frame: its time in seconds; ids, scores and areas of the visible objects
tracks.json            all objects: id, prompt, scores, first and last frame; what was not found, and the best score of
                       its prompt; provenance of the weights; what was lost
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from openworldsam.utils.files import output_file, save_json, save_png
from openworldsam.video.overlay import Overlay
from openworldsam.video.predictor import Track
from openworldsam.video.trackers import TrackedFrame
from openworldsam.visualization import LabelledMasks, draw_masks


class ResultWriter:
    """Writes the results of a clip frame by frame, so that a kill loses none but the overlay; a context manager.

    Args:
        folder: of the results.
        fps: frames per second on average.
        sound: file whose sound the overlay gets.

    Raises:
        ValueError: the folder has results already.
        OSError: a file cannot be written.
    """

    def __init__(self, folder: Path, fps: float, sound: Path | None = None) -> None:
        if (lines := folder / "frames.jsonl").exists() and lines.stat().st_size:
            raise ValueError(f"{folder} has results already; remove them or choose another folder")
        self.folder, self.fps, self.sound = folder, fps, sound
        self.written = 0
        """Frames so far."""
        self._overlay: Overlay | None = None
        self._lines: IO[str]

    def __enter__(self) -> ResultWriter:
        (self.folder / "masks").mkdir(parents=True, exist_ok=True)
        self._lines = output_file(self.folder / "frames.jsonl").open("w", buffering=1)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which `write` has reported
            self._lines.close()
        if self._overlay is not None:
            self._overlay.close(all_sound=error is None)

    def write(
        self, number: int, seconds: float, image: np.ndarray, frame: TrackedFrame, tracks: Sequence[Track]
    ) -> None:
        """Write the frame of a number and time: image uint8 [H, W, 3], RGB; `tracks` are all so far, in order of id."""
        file = f"masks/{number:06d}.png"
        save_png(self.folder / file, frame.id_map)
        areas = np.bincount(frame.id_map.ravel(), minlength=len(tracks) + 1).tolist()
        ids = sorted(frame.scores)
        scores = [{"score": frame.scores[id_], **frame.evidence.get(id_, {})} for id_ in ids]
        objects = [
            {"id": id_, **{name: round(score, 4) for name, score in of_id.items()}, "area": areas[id_]}
            for id_, of_id in zip(ids, scores, strict=True)
        ]
        line = {"frame": number, "time": round(seconds, 6), "file": file, "objects": objects}
        drawn = LabelledMasks(
            task="semantic",
            prompts=tuple(f"{track.id} {track.prompt}" for track in tracks),  # one each, so that colours stay the same
            masks=frame.id_map == np.array(ids, np.uint16)[:, None, None],
            scores=np.array([frame.scores[id_] for id_ in ids], np.float32),
            prompt_index=np.array(ids, np.int64) - 1,
        )
        overlay = draw_masks(image, drawn)
        if self._overlay is None:
            self._overlay = Overlay(
                self.folder / "overlay.mp4", self.fps, (overlay.shape[0], overlay.shape[1]), self.sound
            )
        self._overlay.write(overlay, seconds)
        try:
            self._lines.write(json.dumps(line) + "\n")
        except OSError as error:  # without a name
            raise OSError(error.errno, error.strerror, self._lines.name) from error
        self.written += 1

    def write_tracks(self, tracks: Sequence[Track], about: dict[str, Any]) -> None:
        """Write all objects of the clip, after the entries of `about`."""
        save_json(self.folder / "tracks.json", {**about, "tracks": [vars(track) for track in tracks]}, indent=1)
