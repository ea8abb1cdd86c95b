"""False-positive rate on absent classes."""

from __future__ import annotations

from collections.abc import Collection

from openworldsam.evaluation.metrics.accumulator import Scores, percent


class AbsentPrompts:
    """Share of the prompts for absent classes that got a prediction."""

    def __init__(self) -> None:
        self.prompted = self.found = 0

    def update(self, absent: Collection[int], found: Collection[int]) -> None:
        """Add an image by the ids of the absent classes that were prompted, and of all classes with a prediction."""
        self.prompted += len(absent)
        self.found += len(set(absent) & set(found))

    def merge(self, other: AbsentPrompts) -> None:
        """Add the counts of another accumulator."""
        self.prompted += other.prompted
        self.found += other.found

    def compute(self) -> Scores:
        """Return false_positive_rate; there are no per-class metrics."""
        return Scores({"false_positive_rate": percent(self.found, self.prompted)}, {})
