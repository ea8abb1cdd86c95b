"""Results for a folder of images, written as they come.

For an image sub/a.jpg:
    records/sub/a.json: its annotations, masks as COCO RLE. Written last: an image with a record is done.
    panoptic/sub/a.png: segment ids as colours, 0 = none (panoptic segmentation).
    semantic/sub/a.png: index of each pixel's prompt, 255 (65535 from 256 prompts on) = none (panoptic, semantic).
    overlays/sub/a.png: the masks drawn over the image, on request.
All files are written atomically, so that a run may be killed at any time.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openworldsam.annotate.images import LoadedImage
from openworldsam.annotate.prompts import Prompts
from openworldsam.data.records.coco_json import expect
from openworldsam.data.records.labels import void_label
from openworldsam.data.records.rle import decode_mask
from openworldsam.predictor import Prediction, coco_annotations
from openworldsam.utils.files import named, read_json, save_json, save_png
from openworldsam.utils.panoptic_png import id2rgb
from openworldsam.visualization import draw_prediction


class FolderResults(NamedTuple):
    """Results of one run.

    folder: output folder.
    names: all images by path within their folder; an image's id is its position here, from 1.
    prompts, task: asked of every image.
    overlays: draw overlays.
    """

    folder: Path
    names: Sequence[str]
    prompts: Prompts
    task: str
    overlays: bool = False

    def is_done(self, name: str, version: tuple[int, int]) -> bool:
        """Whether an image has all its files, undamaged and made from this version of it."""
        record = self.record_path(name)
        if not all(map(os.path.isfile, (record, *(self.png_path(kind, name) for kind in self._png_kinds)))):
            return False
        try:
            return read_json(record).get("stamp") == list(version)
        except (ValueError, OSError):
            return False

    def save(self, image: LoadedImage, prediction: Prediction) -> None:
        """Write the files of an image.

        Raises:
            OSError: a file cannot be written, for example as its name is too long.
        """
        for kind in self._png_kinds:
            save_png(self.png_path(kind, image.name), self._pixels(kind, image, prediction))
        height, width = image.pixels.shape[:2]
        record = {
            "file_name": image.name,
            "width": width,
            "height": height,
            "stamp": image.version,
            "not_found": prediction.not_found,
            "annotations": coco_annotations(prediction),
        }
        save_json(self.record_path(image.name), record)

    def forget(self, name: str) -> None:
        """Delete the files of an image that has failed."""
        pngs = (self.png_path(kind, name) for kind in ("panoptic", "semantic", "overlays"))
        for path in (self.record_path(name), *pngs):
            with contextlib.suppress(OSError):  # there is none, or a folder in its place
                path.unlink()

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield id and record of each finished image: the keys of `save`.

        Raises:
            ValueError: a record is damaged.
        """
        for image_id, name in enumerate(self.names, start=1):
            if os.path.isfile(path := self.record_path(name)):
                with expect(path, "record of openworldsam annotate", "Delete it and run the command again"):
                    self._check(record := read_json(path), name)
                yield image_id, record

    def _check(self, record: Mapping[str, Any], name: str) -> None:
        """Raise KeyError or TypeError if this is not the record of an image."""
        numbers = [record["width"], record["height"], *record["not_found"].values()]
        for annotation in record["annotations"]:
            keys = ("area", "iscrowd", "score", "predicted_iou", "isthing")
            numbers += [annotation[key] for key in keys] + annotation["bbox"] + [annotation.get("match", 0.0)]
            if annotation["category_id"] not in range(1, len(self.prompts.texts) + 1):
                raise TypeError(f"it has the prompt {annotation['category_id']!r:.80}")
            if len(annotation["bbox"]) != 4 or not isinstance(annotation["segmentation"], dict):
                raise TypeError("a mask is missing")
        if record["file_name"] != name or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
            raise TypeError("it is of another image, or a number is missing")

    def mask(self, record: Mapping[str, Any], annotation: Mapping[str, Any]) -> np.ndarray:
        """Decode the mask of an annotation of a record, bool [H, W]; raises ValueError if it is damaged."""
        with named(self.record_path(record["file_name"])):
            return decode_mask(annotation["segmentation"], (record["height"], record["width"]))

    def record_path(self, name: str) -> Path:
        """Path of an image's record."""
        return self.folder / "records" / Path(name).with_suffix(".json")

    def png_path(self, kind: str, name: str) -> Path:
        """Path of an image's "panoptic", "semantic" or "overlays" PNG."""
        return self.folder / kind / Path(name).with_suffix(".png")

    @property
    def _png_kinds(self) -> list[str]:
        kinds = {"panoptic": ["panoptic", "semantic"], "semantic": ["semantic"]}.get(self.task, [])
        return [*kinds, "overlays"] if self.overlays else kinds

    def _pixels(self, kind: str, image: LoadedImage, prediction: Prediction) -> np.ndarray:
        """Content of a PNG: uint8 [H, W, 3] or [H, W], or uint16 [H, W]."""
        if kind == "overlays":
            return draw_prediction(image.pixels, prediction)
        if kind == "panoptic":
            return id2rgb(prediction.label_map)
        void = void_label(len(self.prompts.texts))
        table = np.array([void, *prediction.prompt_index], dtype=np.min_scalar_type(void))
        return table[prediction.label_map]
