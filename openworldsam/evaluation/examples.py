"""Evaluation examples: an image, its prompts, and their ground truth.

Shapes: H, W size of the image, P prompts of the image.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from openworldsam.data.preprocessing import to_tensor
from openworldsam.data.records.record import IMAGE_KEYS, Record, Segment
from openworldsam.evaluation.prompt_text import PromptText

PROTOCOLS = ("oracle", "global", "present+absent")
SENTENCES = ("first", "all", "first_alone", "all_alone")
RELEASED_SEED = 42
"""The released code draws the classes of every image that has more than its cap with this seed."""


class Truth(NamedTuple):
    """Ground truth of an image.

    Attributes:
        segment_map: int [H, W], segment ids, 0 for void; empty for referring data.
        segments: the segments of the map.
        absent: absent classes among the prompts; expressions, by place, without a target.
        referents: P times bool [H, W], the mask of each expression.
        not_exhaustive: classes of which some objects may have no annotation.
        instances: COCO annotations of objects that may overlap; None for the things among the segments.
        damaged: what is wrong with objects that are incomplete or left out.
        void: bool [H, W], pixels that Cityscapes' AP ignores; None for those of no segment.
    """

    segment_map: np.ndarray
    segments: Sequence[Segment] = ()
    absent: Sequence[int] = ()
    referents: Sequence[np.ndarray] = ()
    not_exhaustive: Sequence[int] = ()
    instances: Sequence[Mapping[str, Any]] | None = None
    damaged: Sequence[str] = ()
    void: np.ndarray | None = None


class Example(NamedTuple):
    """Inputs of `OpenWorldSAM.forward`, with file_name and image_id, and their ground truth."""

    inputs: dict[str, Any]
    truth: Truth


class Unreadable(NamedTuple):
    """An image that cannot be read, or whose ground truth cannot: its file name and the reason."""

    file_name: str
    reason: str


@dataclass(eq=False)
class EvaluationDataset(Dataset[Example | Unreadable]):
    """Every record of a dataset once; the prompts depend on the record and its index alone.

    A class that an image has only as a crowd, or without a pixel, as of a damaged mask, is neither present nor absent.

    Args:
        records: of a dataset.
        class_names, is_thing: of the contiguous class ids; empty for referring datasets.
        protocol: the classes to prompt for: "oracle" the present ones, "global" all, "present+absent" the present ones
            and `num_absent` random absent ones, or as many as there are.
        num_absent: 0 for as many as present ones, for one where there are no objects, and for all that are listed.
        cap: most present classes, drawn with the released code's seed; 0 for all.
        softmax_classes: size of the vocabulary for softmax weights of queries; 0 for the number of classes.
        text: turns a class name into a prompt.
        sentences: prompts of each object, the "first" sentence or "all"; "_alone" makes no difference here.
        generalized: whether an expression may have several targets, or none.
    """

    records: Sequence[Record]
    _: KW_ONLY
    class_names: Sequence[str] = ()
    is_thing: Sequence[bool] = ()
    protocol: str = "oracle"
    num_absent: int = 0
    cap: int = 0
    softmax_classes: int = 0
    text: PromptText = PromptText()  # noqa: RUF009 (immutable)
    sentences: str = "first"
    generalized: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example | Unreadable:
        record = self.records[index]
        try:
            image = to_tensor(record.read_image())
            asked, truth = self._expressions(record) if record.is_referring else self._classes(record, index)
        except (ValueError, OSError) as error:
            return Unreadable(record["file_name"], str(error))
        inputs = {"image": image, **{key: record[key] for key in IMAGE_KEYS}, **asked}
        return Example(inputs, truth._replace(damaged=record.damaged_objects()))

    def _classes(self, record: Record, index: int) -> tuple[dict[str, Any], Truth]:
        segment_map, segments = record.read_panoptic()
        instances = record.read_instances()
        visible = {*np.unique(segment_map).tolist(), *(instance["id"] for instance in instances or ())}
        there = {s["category_id"] for s in segments}
        present = sorted({s["category_id"] for s in segments if s["id"] in visible and not s["iscrowd"]})
        if 0 < self.cap < len(present):
            present = random.Random(RELEASED_SEED).sample(present, self.cap)
        everything, known = range(len(self.class_names)), record.get("absent")
        absent = [c for c in (everything if known is None else known) if c not in there]
        absent = [] if self.protocol == "oracle" else absent
        if self.protocol == "present+absent":
            # an image without objects is a negative, but one without labels is void
            as_many = max(len(present), int(instances is not None)) if known is None else len(absent)
            count = self.num_absent or as_many
            absent = np.random.default_rng(index).choice(absent, min(count, len(absent)), replace=False).tolist()
        classes = list(everything) if self.protocol == "global" else sorted({*present, *absent})
        asked = {
            "prompts": [self.text.of(self.class_names[c]) for c in classes],
            "class_ids": classes,
            "is_thing": [self.is_thing[c] for c in classes],
            "num_classes": self.softmax_classes or len(self.class_names),
        }
        found = {"instances": instances, "not_exhaustive": record.get("not_exhaustive", ())}
        return asked, Truth(segment_map, segments, absent, **found, void=record.read_void(segment_map))

    def _expressions(self, record: Record) -> tuple[dict[str, Any], Truth]:
        number = 1 if self.sentences.startswith("first") else None
        pairs = [(text, referent) for referent in record.read_referring() for text in referent.sentences[:number]]
        absent = [place for place, (_, referent) in enumerate(pairs) if referent.no_target]
        asked = {"prompts": [text for text, _ in pairs], "generalized": self.generalized}
        return asked, Truth(np.zeros((0, 0)), absent=absent, referents=[referent.mask for _, referent in pairs])


def remark(example: Example) -> str | None:
    """Return a warning to attach to a score that includes this image: its ground truth is empty, or part of it."""
    inputs, truth = example
    if truth.damaged:
        return f"the ground truth is incomplete: {'; '.join(truth.damaged)}"
    masks = enumerate(zip(inputs["prompts"], truth.referents, strict=False))
    if empty := [text for place, (text, mask) in masks if not mask.any() and place not in truth.absent]:
        return f"the ground-truth mask is empty of {', '.join(map(repr, empty))}"
    if not truth.referents and not truth.segment_map.any():
        return "the ground truth is empty" + ("" if inputs["prompts"] else ", so there are no prompts")
    return None if inputs["prompts"] else "no prompts: the image contains only crowd regions"
