"""Absent prompts of training images: names and sentences that describe nothing in the image.

Each image has a fixed list of candidates, so that a feature cache can hold their embeddings; half of them resemble what
the image shows. A visit uses INPUT.NEGATIVES of them, chosen by what the model confuses (`engine.confusions`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from detectron2.data import DatasetFromList

from openworldsam.data.records import Record

CANDIDATES = 2
"""Candidates of an image for each negative of a visit."""
POOL = 200
"""Images whose sentences are negatives of the others."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
"""Words that are exchanged in expressions; "grey" counts as "gray"."""
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS).replace('gray', 'gr[ae]y')})\b", re.IGNORECASE)
FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "behind", "by", "for", "from", "front", "has", "her", "his", "in", "is"),
        *("it", "its", "near", "next", "of", "on", "or", "that", "the", "their", "there", "this", "to", "two", "which"),
        *("who", "with", "wearing", "holding", "sitting", "standing", "left", "right", "leftmost", "rightmost"),
        *("topmost", "bottommost", "largest", "smallest"),
    )
)
"""Words that do not tell what an expression is about."""


class Negatives:
    """Lists the candidates of images.

    Args:
        num: negatives of a visit (INPUT.NEGATIVES).
        class_names: of the contiguous class ids; empty for referring datasets.
        groups: the supercategory of each class; "" for none.
        records: of a referring dataset, whose sentences serve as each other's negatives.
    """

    def __init__(
        self,
        num: int,
        class_names: Sequence[str] = (),
        groups: Sequence[str] = (),
        records: Sequence[Record] | DatasetFromList = (),
    ) -> None:
        self.num, self.class_names, self.records = num, tuple(class_names), records
        self.words = [_content(name) for name in class_names]
        self.groups = tuple(groups) or ("",) * len(self.class_names)

    def classes(self, record: Record) -> list[int]:
        """Class ids that no segment of a record has, crowds included: half of them similar to one that it has.

        Where a dataset lists the classes that are known to be absent, as LVIS does, they are among these.
        """
        present = {segment["category_id"] for segment in record.segments()}
        names, known = {self.class_names[c] for c in present}, record.get("absent")  # two classes may share a name
        everything = range(len(self.class_names)) if known is None else known
        absent = [c for c in everything if self.class_names[c] not in names]
        words = frozenset[str]().union(*(self.words[c] for c in present))
        groups = {self.groups[c] for c in present} - {""}
        similar = [c for c in absent if self.groups[c] in groups or self.words[c] & words]
        return self._mixed(similar, absent, _generator(record))

    def sentences(self, record: Record) -> list[str]:
        """Sentences that hold for no object that a referring record describes, as far as words tell.

        Half are its own with another colour, one that none of its sentences mentions; the others are of other images
        and share no word with its own that tells what they are about.
        """
        own = [text for texts in record.sentences() for text in texts]
        known = frozenset[str]().union(*map(_content, own))
        generator = _generator(record)
        colours = [colour for colour in COLOURS if colour not in known]
        swapped: dict[str, None] = {}
        for text in own if colours else ():
            other = _COLOUR.sub(str(generator.choice(colours)), text)
            swapped |= {} if other == text else {other: None}
        foreign = [text for text, words in self._pool.items() if words and not words & known]
        return self._mixed(list(swapped), list(dict.fromkeys([*swapped, *foreign])), generator)

    @cached_property
    def _pool(self) -> dict[str, frozenset[str]]:
        """Sentences of at most `POOL` images, spread over the dataset, with their words: of all it would take long."""
        step = -(-len(self.records) // POOL)
        of_images = (self.records[index].sentences() for index in range(0, len(self.records), step))
        return {text: _content(text) for objects in of_images for texts in objects for text in texts}

    def _mixed(self, similar: Sequence, absent: Sequence, generator: np.random.Generator) -> list:
        """Draw candidates: half of them similar ones, if there are as many, the others from all that are left."""
        count = CANDIDATES * self.num
        chosen = [similar[i] for i in generator.permutation(len(similar))[: (count + 1) // 2]]
        rest = [one for one in absent if one not in chosen]
        return chosen + [rest[i] for i in generator.permutation(len(rest))[: count - len(chosen)]]


def choose(draws: Sequence[float], weights: Iterable[float], num: int) -> list[int]:
    """Choose `num` of the candidates without replacement, each with a chance in proportion to its weight.

    Args:
        draws: uniform random numbers of the candidates, in 0..1.
        weights: above 0.

    Returns:
        indices, ascending (Efraimidis and Spirakis, 2006: those of largest draw ** (1 / weight)).
    """
    keys = [draw ** (1 / weight) for draw, weight in zip(draws, weights, strict=True)]
    return sorted(sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[:num])


def _content(text: str) -> frozenset[str]:
    """Words of a text that tell what it is about, in lower case."""
    return frozenset(re.findall(r"[^\W\d_]+", text.lower().replace("grey", "gray"))) - FUNCTION_WORDS


def _generator(record: Record) -> np.random.Generator:
    """A generator that follows from the image alone, wherever its dataset lies."""
    name = "/".join(Path(record["file_name"]).parts[-2:])
    return np.random.default_rng(zlib.crc32(f"{record['image_id']} {name}".encode()))
