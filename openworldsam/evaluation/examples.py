"""What evaluation asks about an image, and the ground truth of that.

Shapes: H, W size of the image, P prompts of the image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from openworldsam.data.preprocessing import to_tensor
from openworldsam.data.records import IMAGE_KEYS, Record, Segment
from openworldsam.evaluation.prompt_text import PromptText

PROTOCOLS = ("oracle", "global", "present+absent")
SENTENCES = ("first", "all", "first_alone", "all_alone")
BARE = PromptText()
RELEASED_SEED = 42
"""With which the released code draws the classes of every image that has more than its cap."""


class Truth(NamedTuple):
    """Ground truth of an image.

    segment_map: int [H, W], segment ids, 0 for void; segments: of these. Both empty for referring data.
    absent: classes that are asked about under protocol "present+absent" and that the image does not have.
    referents: P times bool [H, W], the mask of each expression.
    """

    segment_map: np.ndarray
    segments: Sequence[Segment] = ()
    absent: Sequence[int] = ()
    referents: Sequence[np.ndarray] = ()


class Example(NamedTuple):
    """inputs: what `OpenWorldSAM.forward` takes, with file_name and image_id."""

    inputs: dict[str, Any]
    truth: Truth


class Unreadable(NamedTuple):
    """An image or ground truth that cannot be read, and why."""

    file_name: str
    reason: str


class EvaluationDataset(Dataset[Example | Unreadable]):
    """Every record of a dataset once; what is asked depends on the record and its place alone.

    A class that an image has only as a crowd is neither present nor absent.

    Args:
        records: of a dataset.
        class_names, is_thing: of the contiguous class ids; empty for referring datasets.
        protocol: "oracle" asks for the classes that the image has, "global" for all, "present+absent" for those that
            it has and some drawn from those that it has not, as far as there are so many.
        num_absent: how many; 0 for as many as it is asked of those that it has.
        cap: most classes that it is asked of those that it has, drawn with the released code's seed; 0 for all.
        text: what asks for a class.
        sentences: of each object, the "first" or "all"; "alone" does not matter here.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        class_names: Sequence[str] = (),
        is_thing: Sequence[bool] = (),
        protocol: str = "oracle",
        num_absent: int = 0,
        cap: int = 0,
        text: PromptText = BARE,
        sentences: str = "first",
    ) -> None:
        self.records = records
        self.class_names = class_names
        self.is_thing = is_thing
        self.protocol = protocol
        self.num_absent = num_absent
        self.cap = cap
        self.text = text
        self.sentences = sentences

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example | Unreadable:
        record = self.records[index]
        try:
            image = to_tensor(record.read_image())
            asked, truth = self._expressions(record) if record.is_referring else self._classes(record, index)
        except (ValueError, OSError) as error:
            return Unreadable(record["file_name"], str(error))
        return Example({"image": image, **{key: record[key] for key in IMAGE_KEYS}, **asked}, truth)

    def _classes(self, record: Record, index: int) -> tuple[dict[str, Any], Truth]:
        segment_map, segments = record.read_panoptic()
        visible = set(np.unique(segment_map).tolist())
        there = {s["category_id"] for s in segments if s["id"] in visible}
        present = sorted({s["category_id"] for s in segments if s["id"] in visible and not s["iscrowd"]})
        if 0 < self.cap < len(present):
            present = random.Random(RELEASED_SEED).sample(present, self.cap)
        everything = range(len(self.class_names))
        absent: list[int] = []
        if self.protocol == "present+absent":
            others = [c for c in everything if c not in there]
            count = min(self.num_absent or len(present), len(others))
            absent = np.random.default_rng(index).choice(others, count, replace=False).tolist()
        classes = list(everything) if self.protocol == "global" else sorted({*present, *absent})
        asked = {
            "prompts": [self.text.of(self.class_names[c]) for c in classes],
            "class_ids": classes,
            "is_thing": [self.is_thing[c] for c in classes],
            "num_classes": len(self.class_names),
        }
        return asked, Truth(segment_map, segments, absent)

    def _expressions(self, record: Record) -> tuple[dict[str, Any], Truth]:
        number = 1 if self.sentences.startswith("first") else None
        pairs = [(text, r.mask) for r in record.read_referring() for text in r.sentences[:number]]
        return {"prompts": [text for text, _ in pairs]}, Truth(np.zeros((0, 0)), referents=[mask for _, mask in pairs])


def remark(example: Example) -> str | None:
    """What is to be known of a figure that this image is part of: that its ground truth, or part of it, is empty."""
    inputs, truth = example
    empty = [text for text, mask in zip(inputs["prompts"], truth.referents, strict=False) if not mask.any()]
    if empty:
        return f"the ground-truth mask is empty of {', '.join(map(repr, empty))}"
    if not truth.referents and not truth.segment_map.any():
        return "the ground truth is empty" + ("" if inputs["prompts"] else ", so nothing is asked")
    return None if inputs["prompts"] else "nothing is asked: what there is is a crowd"
