"""RefCOCOg in the UMD split: objects of COCO images, each with the sentences that refer to it.

Nagaraja et al., "Modeling Context Between Objects for Referring Expression Understanding", ECCV 2016.
`data/prepare/refcocog.py` makes the json of a split from the published files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

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

_PREPARE = "datasets/README.md says how to get RefCOCOg and COCO; `python datasets/prepare.py refcocog` makes the json"
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
    """Read a json of referring expressions into Detectron2's records, one per image, in order of first occurrence.

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
        "sentences": plain_sentences(annotation["sentences"], annotation["id"]),
        "segmentation": annotation["segmentation"],
        "bbox": annotation["bbox"],
        "category_id": index,
    }


def plain_sentences(sentences: Any, object_id: int) -> list[str]:
    """Lower-cased, stripped texts of a list of sentences, each a text or an object with a "raw" text, without blanks.

    Raises:
        ValueError: it is no list of these.
    """
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
