"""Shared parts of the metrics: the form of the results and the sum over processes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from detectron2.utils import comm

Metrics = dict[str, float | None]
"""Values by name, 0 to 100 unless a metric says otherwise; None if there was nothing to measure."""


class Scores(NamedTuple):
    """overall: metrics over everything; per_class: metrics by class id, empty for tasks without classes."""

    overall: Metrics
    per_class: dict[int, Metrics]


class Mergeable(Protocol):
    """Counts over the images of one process."""

    def merge(self, other: Any) -> None:
        """Add the counts of another object constructed with the same arguments."""


MergeableT = TypeVar("MergeableT", bound=Mergeable)


def merged(counts: MergeableT) -> MergeableT | None:
    """Merge the counts of all processes into those of the first process; return None on the others."""
    parts = comm.gather(counts)
    if not parts:
        return None
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    return whole


def percent(part: float, whole: float) -> float | None:
    """Return 100 part / whole; None if whole is 0."""
    return 100 * part / whole if whole else None


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None, exactly rounded, so that their order does not matter."""
    available = [value for value in values if value is not None]
    return math.fsum(available) / len(available) if available else None


def finite(key: str, value: Any) -> float:
    """Return the value of an entry; raise ValueError, which names the entry, if it is no finite number."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, got {value!r}")
    return cast(float, value)
