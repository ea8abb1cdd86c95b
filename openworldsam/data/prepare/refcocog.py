"""RefCOCOg's json files of the UMD split, from the published pickle of references and COCO's `instances.json`."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from openworldsam.data.datasets.coco import lack
from openworldsam.data.datasets.refcocog import image_name, plain_sentences


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
        raise FileNotFoundError(f"{path} not found. datasets/README.md says where refcocog.zip is") from None
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
                sentences.setdefault(ref["ann_id"], []).extend(plain_sentences(ref["sentences"], ref["ann_id"]))
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
