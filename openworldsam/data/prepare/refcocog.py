"""RefCOCOg's json files of the UMD split, from the published pickle of references and COCO's `instances.json`."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from openworldsam.data.datasets.refcocog import DATASETS
from openworldsam.data.prepare.plan import Plan
from openworldsam.data.records.coco_json import lack
from openworldsam.data.records.referring import image_name, plain_sentences
from openworldsam.utils.files import read_json, save_json

_README = "It is in refcocog.zip; datasets/README.md says where that is"


class Counts(NamedTuple):
    """Sizes of a split; a reference is an object with all its sentences."""

    images: int
    references: int
    sentences: int


EXPECTED_COUNTS = {"train": Counts(21_899, 42_226, 80_512), "val": Counts(1_300, 2_573, 4_896)}


def make_refcocog(plan: Plan, *, refs: Path | None, instances: Path | None) -> None:
    """Make the json files of both splits.

    Args:
        plan: has the folder of all datasets, and whether other counts than the published ones are an error.
        refs: the file `refs(umd).p`, if it is elsewhere.
        instances: the file `instances.json`, if it is not beside it.

    Raises:
        OSError, ValueError: a file is missing, damaged, of another format or cannot be written; nothing is written.
    """
    refs = refs or plan.root / "refcocog" / "refs(umd).p"
    references = read_refs(refs)
    for split, expected in EXPECTED_COUNTS.items():
        if (found := count(references, split)) != expected:
            message = f"{refs}, {split}: {found}; published is {expected}"
            if plan.check_counts:
                raise ValueError(f"{message}. Fetch refcocog.zip again, or give --no-check to go on")
            print(f"warning: {message}", file=sys.stderr)
    objects = read_json(instances or refs.parent / "instances.json", _README)
    contents = {split: convert(references, objects, split) for split in EXPECTED_COUNTS}
    for split, content in contents.items():
        target = plan.root / DATASETS[f"refcocog_umd_{split}"]
        save_json(target, content)
        sentences = sum(len(annotation["sentences"]) for annotation in content["annotations"])
        sizes = f"{len(content['images'])} images, {len(content['annotations'])} objects, {sentences} sentences"
        print(f"{target}: {sizes}")


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, tuples, dicts, numbers and texts; refuses imports, by which a pickle can run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only lists, dicts, numbers and texts are allowed")


def read_refs(path: str | Path) -> list[dict[str, Any]]:
    """Read `refs(umd).p` without running code from it.

    Returns:
        one dict per reference, with ann_id, image_id, split and sentences.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a pickle of plain data, or not a list of references.
    """
    try:
        with Path(path).open("rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8").load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found. {_README}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path} is not trusted or is damaged: {error}. Fetch refcocog.zip again") from error
    keys = {"ann_id": int, "image_id": int, "split": str, "sentences": list}
    if not isinstance(refs, list) or not all(
        isinstance(ref, dict) and all(isinstance(ref.get(key), kind) for key, kind in keys.items()) for ref in refs
    ):
        raise ValueError(f"{path} is not RefCOCOg's refs(umd).p: not a list of dicts with {', '.join(sorted(keys))}")
    return refs


def convert(refs: Sequence[Mapping[str, Any]], instances: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Convert one split to a json like COCO's instances, with "sentences" added to each annotation.

    Each object occurs once, with the sentences of all its references, lower-cased and without blank ones. Images have
    their names of COCO 2017.

    Args:
        refs: from `read_refs`.
        instances: content of RefCOCOg's instances.json.
        split: "train", "val" or "test".

    Raises:
        ValueError: instances.json is in another format or lacks an object or image of the references.
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
        "info": {"description": f"RefCOCOg, UMD split, {split}: made by datasets/prepare.py refcocog"},
        "images": images,
        "annotations": annotations,
        "categories": instances.get("categories", []),
    }


def count(refs: Iterable[Mapping[str, Any]], split: str) -> Counts:
    """Count a split's images, references and sentences, blank ones included."""
    chosen = [ref for ref in refs if ref["split"] == split]
    images = {ref["image_id"] for ref in chosen}
    return Counts(len(images), len(chosen), sum(len(ref["sentences"]) for ref in chosen))
