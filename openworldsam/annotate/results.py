"""The results of a folder of pictures, in a folder of their own.

For a picture sub/a.jpg:
    records/sub/a.json: what was found, the masks as COCO's RLE. A picture that has one is done; it is written last.
    panoptic/sub/a.png: ids of the segments as colours, 0 where there is none (panoptic segmentation).
    semantic/sub/a.png: contiguous class ids, 255 (from 256 prompts on 65535) where there is none (panoptic, semantic).
    overlays/sub/a.png: the picture with the masks over it, on demand.
Everything is written whole or not at all, so that a run may end at any moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from panopticapi.utils import id2rgb

from openworldsam.annotate.pictures import Picture, Stamp
from openworldsam.annotate.prompts import Prompts
from openworldsam.evaluation.saved import void_label
from openworldsam.predictor.export import coco_annotations
from openworldsam.predictor.prediction import Prediction
from openworldsam.utils.files import read_json, save_json, save_png
from openworldsam.visualization import draw_prediction

Record = dict[str, Any]
"""file_name, width, height, stamp, best_score, and annotations as of `coco_annotations`."""


class Results(NamedTuple):
    """The results of a run.

    folder: where they are; task: that was asked; overlays: whether they are drawn.
    """

    folder: Path
    prompts: Prompts
    task: str
    overlays: bool = False

    def is_done(self, name: str, stamp: Stamp) -> bool:
        """Whether a picture has all its files, and has not changed since.

        Raises:
            ValueError: its record is damaged.
        """
        record, others = self._record(name), (self.png(kind, name) for kind in self._kinds)
        return record.exists() and all(p.exists() for p in others) and read_json(record).get("stamp") == list(stamp)

    def save(self, picture: Picture, prediction: Prediction) -> None:
        """Write what was found in a picture.

        Raises:
            OSError: a file cannot be written.
        """
        for kind in self._kinds:
            save_png(self.png(kind, picture.name), self._pixels(kind, picture, prediction))
        height, width = picture.image.shape[:2]
        record: Record = {
            "file_name": picture.name,
            "width": width,
            "height": height,
            "stamp": picture.stamp,
            "best_score": prediction.best_score,
            "annotations": coco_annotations(prediction),
        }
        save_json(self._record(picture.name), record)

    def forget(self, name: str) -> None:
        """Delete what was written of a picture that can be read no more."""
        for path in (self._record(name), *(self.png(kind, name) for kind in ("panoptic", "semantic", "overlays"))):
            path.unlink(missing_ok=True)

    def records(self, names: Iterable[str]) -> Iterator[tuple[int, Record]]:
        """The records of the pictures that are done, one at a time, with the place of each among the names, from 1."""
        for number, name in enumerate(names, start=1):
            if (path := self._record(name)).exists():
                yield number, read_json(path)

    def png(self, kind: str, name: str) -> Path:
        """Where a picture's file is, of the kind "panoptic", "semantic" or "overlays"."""
        return self.folder / kind / Path(name).with_suffix(".png")

    def _record(self, name: str) -> Path:
        return self.folder / "records" / Path(name).with_suffix(".json")

    @property
    def _kinds(self) -> list[str]:
        """Of the PNGs of each picture."""
        kinds = {"panoptic": ["panoptic", "semantic"], "semantic": ["semantic"]}.get(self.task, [])
        return [*kinds, *(["overlays"] if self.overlays else [])]

    def _pixels(self, kind: str, picture: Picture, prediction: Prediction) -> np.ndarray:
        """What a PNG holds: uint8 [H, W, 3] or [H, W], or uint16 [H, W]."""
        if kind == "overlays":
            return draw_prediction(picture.image, prediction)
        if kind == "panoptic":
            return id2rgb(prediction.label_map)
        void = void_label(len(self.prompts.texts))
        table = np.array([void, *prediction.prompt_index], dtype=np.min_scalar_type(void))
        return table[prediction.label_map]
