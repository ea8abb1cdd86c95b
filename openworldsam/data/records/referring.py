"""Referring expressions: COCO's instance json with "sentences" in each annotation.

Shapes: H, W image size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from openworldsam.data.records.coco_json import by_id, expect, flag, image_entries, warn_of_damage, warn_of_missing
from openworldsam.data.records.record import Record, Referent
from openworldsam.data.records.rle import Segmentation, empty_mask, usable_masks
from openworldsam.utils.files import named, read_json


class ReferringObject(TypedDict):
    """An object that is referred to, in gRefCOCO the union of several; segmentation is None if it is not there."""

    id: int
    sentences: list[str]
    segmentation: Segmentation | None


class ReferringRecord(Record):
    """An image with the objects that are referred to: annotations, a list of `ReferringObject`."""

    __slots__ = ()
    truth_keys = ("annotations",)

    @classmethod
    def fits(cls, entry: Mapping[str, Any]) -> bool:
        return super().fits(entry) and all("sentences" in annotation for annotation in entry["annotations"])

    @property
    def is_referring(self) -> bool:
        return True

    @property
    def is_empty(self) -> bool:
        return not any(self.sentences())

    def sentences(self) -> list[tuple[str, ...]]:
        return [tuple(annotation["sentences"]) for annotation in self["annotations"]]

    def read_referring(self) -> list[Referent]:
        masks, problems = self._masks()
        warn_of_damage(self["file_name"], problems)
        found = zip(self.sentences(), masks, (a["segmentation"] is None for a in self["annotations"]), strict=True)
        return [Referent(texts, mask, no_target) for texts, mask, no_target in found if mask is not None]

    def damaged_objects(self) -> list[str]:
        return self._masks()[1]

    def _masks(self) -> tuple[list[np.ndarray | None], list[str]]:
        """Return what `usable_masks` does, with an empty mask for an expression without a target."""
        size = (self["height"], self["width"])
        nothing = {"segmentation": empty_mask(size)}
        objects = [a if a["segmentation"] is not None else {**a, **nothing} for a in self["annotations"]]
        return usable_masks(objects, size)


def load_referring(json_file: str | Path, image_root: str | Path, *, hint: str = "") -> list[ReferringRecord]:
    """Read a json of referring expressions into records, one per image, in order of first occurrence.

    X-Decoder's public refcocog_umd_val.json, whose sentences are objects with a "raw" text, can be read as well.
    An annotation with "no_target", as in gRefCOCO, refers to nothing. A warning counts missing images; their records
    stay. For the arguments see `load_panoptic`.

    Raises:
        FileNotFoundError: the json, or every single image, is missing.
        ValueError: the json is damaged, of another format, or has no object with a sentence.
    """
    content = read_json(json_file, hint)
    records: dict[int, ReferringRecord] = {}
    with expect(json_file, "json of referring expressions", hint), named(json_file):
        images = by_id(content["images"])
        for annotation in content["annotations"]:
            sentences = plain_sentences(annotation["sentences"], annotation["id"])
            if not sentences:
                continue
            # an object that lacks its mask is damaged, unlike an expression of no object
            code = None if flag(annotation, "no_target") else annotation.get("segmentation", [])
            image = images[annotation["image_id"]]
            entries = image_entries({**image, "file_name": image_name(image["id"])}, image_root)
            record = records.setdefault(image["id"], ReferringRecord(entries, annotations=[]))
            record["annotations"].append(ReferringObject(id=annotation["id"], sentences=sentences, segmentation=code))
        ids = Counter(each["id"] for record in records.values() for each in record["annotations"])
        if twice := [id_ for id_, times in ids.items() if times > 1]:
            raise ValueError(f"{len(twice)} objects have the id of another one, such as {twice[0]}")
    if not records:
        raise ValueError(f"{json_file} has no usable image: none of its objects has a sentence")
    warn_of_missing((record["file_name"] for record in records.values()), json_file, hint)
    return list(records.values())


def plain_sentences(sentences: Any, object_id: int) -> list[str]:
    """Lower and strip sentences, each a text or an object with a "raw" text, and drop blank ones.

    Raises:
        ValueError: it is no list of these.
    """
    texts: list[Any] = sentences if isinstance(sentences, list) else [None]
    texts = [text.get("raw") if isinstance(text, dict) else text for text in texts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the sentences of object {object_id} are no list of texts: {str(sentences)[:80]}")
    return [plain for text in texts if (plain := text.lower().strip())]


def image_name(image_id: int) -> str:
    """Return an image's name in COCO 2017. RefCOCOg has the names of 2014, COCO_train2014_*, with the same ids.

    Raises:
        ValueError: the id is a text.
    """
    if isinstance(image_id, str):
        raise ValueError(f"referring expressions are on COCO's images, whose ids are numbers, got {image_id!r}")
    return f"{image_id:012d}.jpg"
