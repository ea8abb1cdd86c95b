"""What the metrics share: the form of their results, and the sum over processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

from detectron2.utils import comm

Metrics = dict[str, float | None]
"""Values by name, 0 to 100; None is "not available", for there was nothing to measure."""


class Scores(NamedTuple):
    """overall: metrics of the whole; per_class: metrics of every class by its id, if there are classes."""

    overall: Metrics
    per_class: dict[int, Metrics]


class Mergeable(Protocol):
    """Counts of a process's images so far."""

    def merge(self, other: Any) -> None:
        """Add the counts of another one that was made with the same arguments."""


class Accumulator(Mergeable, Protocol):
    """Counts of the images so far.

    Its `update` takes one image and raises ValueError for what cannot be scored, leaving the counts as they were.
    The counts do not depend on the order of the images, nor on how they are spread over processes.
    """

    def compute(self) -> Scores:
        """The metrics of all images so far."""


MergeableT = TypeVar("MergeableT", bound=Mergeable)


def merged(counts: MergeableT) -> MergeableT | None:
    """The counts of all processes as one, on the first process; None on the others."""
    parts = comm.gather(counts)
    if not parts:
        return None
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    return whole


@contextmanager
def named(what: object) -> Iterator[None]:
    """Put the name of an image or file in front of the ValueErrors that arise within."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def percent(part: float, whole: float) -> float | None:
    """100 part / whole; None of nothing."""
    return 100 * part / whole if whole else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are available, exactly rounded, so that their order does not matter."""
    available = [value for value in values if value is not None]
    return math.fsum(available) / len(available) if available else None
