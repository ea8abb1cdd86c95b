"""How often something is found that is not there."""

from __future__ import annotations

from collections.abc import Collection

from openworldsam.evaluation.metrics.accumulator import Scores, percent


class AbsentPrompts:
    """The false-positive rate: of all prompts for classes that their image does not have, those that found one."""

    def __init__(self) -> None:
        self.asked = self.found = 0

    def update(self, absent: Collection[int], found: Collection[int]) -> None:
        """Add an image.

        Args:
            absent: the classes that it was asked about and does not have.
            found: the classes of which there is a prediction.
        """
        self.asked += len(absent)
        self.found += len(set(absent) & set(found))

    def merge(self, other: AbsentPrompts) -> None:
        """Add the counts of another accumulator."""
        self.asked += other.asked
        self.found += other.found

    def compute(self) -> Scores:
        """false_positive_rate; there are no classes."""
        return Scores({"false_positive_rate": percent(self.found, self.asked)}, {})
