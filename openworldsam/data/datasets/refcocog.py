"""RefCOCOg in the UMD split: objects of COCO images, each with the sentences that refer to it.

Nagaraja et al., "Modeling Context Between Objects for Referring Expression Understanding", ECCV 2016. The published
files are a pickle of references, `refs(umd).p`, and COCO's `instances.json`; `convert` makes one json of them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypedDict

import numpy as np
from detectron2.data import DatasetCatalog
from pycocotools import mask as rle

from openworldsam.data.datasets.coco import CATEGORIES, by_id, dataset_root, lack, set_metadata, warn_of_missing
from openworldsam.data.rle import to_rle
from openworldsam.utils.files import read_json

Segmentation = Any  # COCO's: a list of polygons [x0, y0, x1, y1, ...], or an RLE {"size": [H, W], "counts": ...}

IMAGE_ROOT = "coco/train2017"
DATASETS = {
    "refcocog_umd_train": "coco/annotations/refcocog_umd_train.json",
    "refcocog_umd_val": "coco/annotations/refcocog_umd_val.json",
}

_PREPARE = "datasets/README.md says how to get RefCOCOg and COCO; `python datasets/prepare_refcocog.py` makes the json"
_CONTIGUOUS = {category.id: index for index, category in enumerate(CATEGORIES)}


class ReferringObject(TypedDict):
    """An object that is referred to. bbox is x, y, width, height in pixels; category_id contiguous, as in COCO."""

    id: int
    sentences: list[str]
    segmentation: Segmentation
    bbox: list[float]
    category_id: int


class ReferringRecord(TypedDict):
    """An image with everything in it that is referred to."""

    file_name: str
    image_id: int
    height: int
    width: int
    annotations: list[ReferringObject]


def register() -> None:
    """Register both splits; may be called again."""
    for name, json_file in DATASETS.items():
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        DatasetCatalog.register(name, partial(_load_registered, name, json_file))
        set_metadata(name, evaluator_type="referring", tasks=("referring",), vocabulary=[], is_thing=[])


def _load_registered(name: str, json_file: str) -> list[ReferringRecord]:
    path, image_root = str(dataset_root() / json_file), str(dataset_root() / IMAGE_ROOT)
    set_metadata(name, json_file=path, image_root=image_root)
    return load_referring(path, image_root, hint=_PREPARE)


def load_referring(json_file: str | Path, image_root: str | Path, *, hint: str = "") -> list[ReferringRecord]:
    """Read a json of `convert` into Detectron2's records, one per image, in the order in which they first occur.

    X-Decoder's public refcocog_umd_val.json, whose sentences are objects with a "raw" text, is understood as well.
    Missing images are counted in a warning; their records stay.

    Args:
        json_file: the json.
        image_root: folder of COCO's train2017 images.
        hint: what to do about a missing file; ends the error message.

    Raises:
        FileNotFoundError: the json, or every single image, is missing.
        ValueError: the json is damaged, of another format, or has no object with a sentence.
    """
    content = read_json(json_file, hint)
    records: dict[int, ReferringRecord] = {}
    try:
        images = by_id(content["images"])
        for annotation in content["annotations"]:
            referred = _object(annotation)
            if not referred["sentences"]:
                continue
            image = images[annotation["image_id"]]
            record = ReferringRecord(
                file_name=str(Path(image_root, image_name(image["id"]))),
                image_id=image["id"],
                height=image["height"],
                width=image["width"],
                annotations=[],
            )
            records.setdefault(image["id"], record)["annotations"].append(referred)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{json_file} is no json of referring expressions: {lack(error)}. {hint}".rstrip()) from error
    except ValueError as error:
        raise ValueError(f"{json_file}: {error}") from None
    if not records:
        raise ValueError(f"{json_file} has no usable image: none of its objects has a sentence")
    warn_of_missing((record["file_name"] for record in records.values()), json_file, hint)
    return list(records.values())


def _object(annotation: Mapping[str, Any]) -> ReferringObject:
    if (index := _CONTIGUOUS.get(annotation["category_id"])) is None:
        raise ValueError(f"object {annotation['id']} has the category id {annotation['category_id']!r}, none of COCO's")
    return {
        "id": annotation["id"],
        "sentences": _texts(annotation["sentences"], annotation["id"]),
        "segmentation": annotation["segmentation"],
        "bbox": annotation["bbox"],
        "category_id": index,
    }


def _texts(sentences: Any, object_id: int) -> list[str]:
    """Sentences, texts or objects with a "raw" one, lower-cased, stripped, without blank ones."""
    texts: list[Any] = sentences if isinstance(sentences, list) else [None]
    texts = [text.get("raw") if isinstance(text, dict) else text for text in texts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the sentences of object {object_id} are no list of texts: {str(sentences)[:80]}")
    return [plain for text in texts if (plain := text.lower().strip())]


def image_name(image_id: int) -> str:
    """The name of an image in COCO 2017. RefCOCOg has those of 2014, COCO_train2014_*; the ids are the same."""
    return f"{image_id:012d}.jpg"


def union_mask(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """The pixels that any part of a COCO segmentation covers.

    Args:
        segmentation: polygons in pixels, or an RLE of the image's size, compressed or not.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        bool [H, W].

    Raises:
        ValueError: no polygon with three or more points, or an RLE that is damaged or of another size.
    """
    try:
        if isinstance(segmentation, list):
            # fewer numbers are no area, and pycocotools takes four for a box
            segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
            if not segmentation:
                raise ValueError("a segmentation without a polygon of three points")
        return rle.decode(to_rle(segmentation, (height, width))).astype(bool)
    except (TypeError, AttributeError) as error:  # of numbers and texts where others belong
        raise ValueError(f"neither polygons nor an RLE: {str(segmentation)[:80]}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, tuples, dicts, numbers and texts; these need no import, which is how a pickle runs code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only lists, dicts, numbers and texts are allowed")


def read_refs(path: str | Path) -> list[dict[str, Any]]:
    """Read `refs(umd).p` without running anything that a pickle could make Python run.

    Returns:
        one dict per reference, with ann_id, image_id, split and sentences.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no pickle, holds other than plain data, or is no list of references.
    """
    try:
        with Path(path).open("rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8").load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found. {_PREPARE}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path} is not trusted or is damaged: {error}. Fetch refcocog.zip again") from error
    keys = {"ann_id": int, "image_id": int, "split": str, "sentences": list}
    if not isinstance(refs, list) or not all(
        isinstance(ref, dict) and all(isinstance(ref.get(key), kind) for key, kind in keys.items()) for ref in refs
    ):
        raise ValueError(f"{path} is no list of references with {', '.join(sorted(keys))}; RefCOCOg's refs(umd).p is")
    return refs


class Counts(NamedTuple):
    """What a split consists of; a reference is an object with all its sentences."""

    images: int
    references: int
    sentences: int


EXPECTED_COUNTS = {"train": Counts(21_899, 42_226, 80_512), "val": Counts(1_300, 2_573, 4_896)}


def convert(refs: Sequence[Mapping[str, Any]], instances: Mapping[str, Any], split: str) -> dict[str, Any]:
    """One split of RefCOCOg as a json, COCO's instances with "sentences" added.

    Each object is there once, with the sentences of all its references, lower-cased; blank ones are left out. Images
    have their names of 2017.

    Args:
        refs: from `read_refs`.
        instances: content of RefCOCOg's instances.json.
        split: "train", "val" or "test".

    Raises:
        ValueError: instances.json is of another format or lacks an object or image of the references.
    """
    sentences: dict[int, list[str]] = {}
    try:
        for ref in refs:
            if ref["split"] == split:
                sentences.setdefault(ref["ann_id"], []).extend(_texts(ref["sentences"], ref["ann_id"]))
        objects = {annotation["id"]: annotation for annotation in instances["annotations"]}
        sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
        if lacking := sentences.keys() - objects.keys():
            raise ValueError(f"instances.json lacks {len(lacking)} objects of {split}, such as {min(lacking)}")
        kept = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
        annotations = [{**{key: objects[i][key] for key in kept}, "sentences": texts} for i, texts in sentences.items()]
        images = [
            {"id": i, "file_name": image_name(i), "height": sizes[i][0], "width": sizes[i][1]}
            for i in dict.fromkeys(annotation["image_id"] for annotation in annotations)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"refs(umd).p and instances.json do not fit together: {lack(error)}") from error
    return {
        "info": {"description": f"RefCOCOg, UMD split, {split}: made by datasets/prepare_refcocog.py"},
        "images": images,
        "annotations": annotations,
        "categories": instances.get("categories", []),
    }


def count(refs: Iterable[Mapping[str, Any]], split: str) -> Counts:
    """Count a split's images, references and sentences, blank ones included."""
    chosen = [ref for ref in refs if ref["split"] == split]
    images = {ref["image_id"] for ref in chosen}
    return Counts(len(images), len(chosen), sum(len(ref["sentences"]) for ref in chosen))
