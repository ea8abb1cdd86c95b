"""Predictions of other methods in standard formats, to be drawn beside ours (Fig. 5 to 8, with X-Decoder).

A method has a folder, and in it one for each benchmark, with any of these; category ids are the dataset's own:
    panoptic.json, panoptic/*.png: COCO panoptic. Detectron2's predictions.json and the PNGs beside it are read as well.
    instances.json: COCO results with masks. Detectron2's coco_instances_results.json is read as well.
    semantic/*.png: class ids from 0, other labels for none, named as the images, with their folders where names occur
        in several. Detectron2's sem_seg_predictions.json is read as well.
    referring.json: results with a mask under the "id" of each expression of truth/referring.json.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.coco_json import ImageId, expect, whole
from openworldsam.data.records.labels import LABEL_SUFFIXES, read_labels
from openworldsam.data.records.rle import decode_mask, to_rle
from openworldsam.evaluation.answer import NO_CLASS, Answer
from openworldsam.evaluation.metrics.accumulator import finite
from openworldsam.evaluation.saved import FILES, SavedImage, SavedPredictions
from openworldsam.utils.files import by_stem, named, read_any_json, read_json
from openworldsam.utils.panoptic_png import rgb2id

SMALLEST_SCORE = 0.5
"""Instances are drawn from this score on; other methods may list a hundred for an image."""


class OtherMethod(NamedTuple):
    """Another method: its name on the page, and its folder."""

    name: str
    folder: Path

    def answer(self, benchmark: str, saved: SavedPredictions, image_id: ImageId, image: SavedImage) -> Answer:
        """Read the prediction for an image that a run of ours has saved; None for a task of which there is no file.

        Raises:
            FileNotFoundError: a PNG is missing.
            ValueError: a file is damaged, of another size or class than the image or the benchmark, or has other ids.
        """
        folder, size = self.folder / benchmark, image.pixels.shape[:2]
        if not folder.is_dir():
            return Answer()
        return Answer(
            _panoptic(folder, saved, image_id, size),
            _instances(folder, saved, image_id, size),
            _semantic(folder, saved, image, size),
            _referring(folder, image_id, len(image.prompts), size),
        )


def _panoptic(folder: Path, saved: SavedPredictions, image_id: ImageId, size: tuple[int, ...]) -> Any:
    path = _first(folder / FILES["panoptic"], folder / "predictions.json")
    if not path:
        return None
    with expect(path, "COCO panoptic json"), named(path):
        if not (entries := _grouped(path, "image_id").get(image_id)):
            raise ValueError(f"it has no prediction of the image {image_id!r}; truth/panoptic.json lists all ids")
        pngs = folder / "panoptic" if (folder / "panoptic").is_dir() else folder
        png = pngs / entries[0]["file_name"]
        segments = [
            _with_class(segment, saved) | {"id": whole(segment["id"], "the id of a segment")}
            for segment in entries[0]["segments_info"]
        ]
        return _sized(png, rgb2id(read_image(png)), size), segments


def _instances(folder: Path, saved: SavedPredictions, image_id: ImageId, size: tuple[int, ...]) -> Any:
    path = _first(folder / FILES["instance"], folder / "coco_instances_results.json")
    if not path:
        return None
    with expect(path, "list of COCO results"), named(path):
        groups = _grouped(path, "image_id")
        if groups and not any(isinstance(other, type(image_id)) for other in groups):
            raise ValueError(f"it has ids such as {next(iter(groups))!r}, where the image has the id {image_id!r}")
        found = [x for x in groups.get(image_id, []) if finite("score", x["score"]) >= SMALLEST_SCORE]
        return [_with_class(x, saved) | {"segmentation": to_rle(x["segmentation"], (size[0], size[1]))} for x in found]


def _semantic(folder: Path, saved: SavedPredictions, image: SavedImage, size: tuple[int, ...]) -> np.ndarray | None:
    if (folder / "semantic").is_dir():
        files = by_stem(folder / "semantic", LABEL_SUFFIXES)
        if not (stem := _most_alike(files, image.file_name)):
            raise FileNotFoundError(f"{folder / 'semantic'} has no label image named as {image.file_name}")
        labels = _sized(files[stem], read_labels(files[stem]), size).astype(np.int64)
        return np.where(labels < len(saved.class_names), labels, NO_CLASS)
    if not (path := folder / "sem_seg_predictions.json").exists():
        return None
    labels = np.full(size, NO_CLASS, dtype=np.int64)
    with expect(path, "list of Detectron2's SemSegEvaluator"), named(path):
        groups = _grouped(path, "file_name", stem=True)
        for entry in groups.get(_most_alike(groups, image.file_name), []):
            mask = decode_mask(entry["segmentation"], (size[0], size[1]))
            labels[mask] = _with_class(entry, saved)["category_id"]
    return labels


def _referring(folder: Path, image_id: ImageId, count: int, size: tuple[int, ...]) -> Sequence[np.ndarray] | None:
    if not (path := _first(folder / FILES["referring"])):
        return None
    with expect(path, "list of predicted expressions"), named(path):
        results = [_grouped(path, "id").get(f"{image_id}_{place}") for place in range(count)]
        nothing = np.zeros(size, bool)
        return [decode_mask(r[0]["segmentation"], (size[0], size[1])) if r else nothing for r in results]


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _most_alike(stems: Iterable[str], image: str) -> str | None:
    """Return the path without suffix that ends like that of an image; None if none has its name.

    Images in several folders may have the same name, as in ScanNet; their folders then decide.

    Raises:
        ValueError: two paths end alike.
    """
    own = Path(unicodedata.normalize("NFC", image)).with_suffix("").parts[::-1]

    def shared(stem: str) -> int:
        pairs = zip(own, reversed(Path(stem).parts), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    best = sorted((stem for stem in stems if shared(stem)), key=shared)[-2:]
    if len(best) == 2 and shared(best[0]) == shared(best[1]):
        raise ValueError(f"{best[0]} and {best[1]} may both be the prediction of {image}; put it into its folders")
    return best[-1] if best else None


@cache
def _grouped(path: Path, key: str, stem: bool = False) -> dict[Any, list[dict[str, Any]]]:
    """Read the entries of a list, or of the annotations of an object, by one of their values, or a path without its
    suffix."""
    content = read_any_json(path)
    groups: dict[Any, list[dict[str, Any]]] = {}
    for entry in content if isinstance(content, list) else content["annotations"]:
        groups.setdefault(str(Path(entry[key]).with_suffix("")) if stem else entry[key], []).append(entry)
    return groups


@cache
def _classes(folder: Path, names: tuple[str, ...]) -> dict[int, int]:
    """Read the contiguous class ids by those of the dataset's own files, which a benchmark's saved ground truth lists
    unless it is of semantic segmentation alone."""
    path = _first(folder / "truth" / FILES["panoptic"], folder / "truth" / FILES["instance"])
    if not path:
        return {index: index for index in range(len(names))}
    return {category["id"]: names.index(category["name"]) for category in read_json(path)["categories"]}


def _with_class(entry: Mapping[str, Any], saved: SavedPredictions) -> dict[str, Any]:
    """Replace the category id by the contiguous one; raises ValueError if the benchmark has no such class."""
    classes = _classes(saved.folder, tuple(saved.class_names))
    if entry["category_id"] not in classes:
        raise ValueError(f"the benchmark has no category {entry['category_id']!r}")
    return {**entry, "category_id": classes[entry["category_id"]]}


def _sized(path: Path, pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if pixels.shape != size:
        raise ValueError(f"{path} is {pixels.shape}, its image {size}")
    return pixels
