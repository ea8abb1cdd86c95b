"""Hard negatives: the choice among an image's absent prompts, by what the model confuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from openworldsam.data.negatives import choose

FLOOR = 0.05
"""Weight of a prompt that is never found, so that none is forgotten."""
MEMORY = 0.8
"""Share of the old value that a new score leaves."""


class Confusions:
    """A running mean of the highest match score of each absent prompt.

    Args:
        num: absent prompts of an image (INPUT.NEGATIVES).

    Attributes:
        scores: the means by prompt; a prompt that was not asked yet counts as 1.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.scores: dict[str, float] = {}

    def choose(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Leave of an image's absent prompts, the last ones, at most `num`, each drawn in proportion to its mean.

        Args:
            inputs: of a `DatasetMapper`, perhaps with cached embeddings.
        """
        draws = inputs["negative_draws"]
        first = len(inputs["prompts"]) - len(draws)
        weights = [FLOOR + self.scores.get(prompt, 1.0) for prompt in inputs["prompts"][first:]]
        kept = [*range(first), *(first + index for index in choose(draws, weights, self.num))]
        chosen = {key: [inputs[key][i] for i in kept] for key in ("prompts", "class_ids", "is_thing", "targets")}
        if "prompt_embeddings" in inputs:
            chosen["prompt_embeddings"] = inputs["prompt_embeddings"][torch.tensor(kept)]
        return {**inputs, **chosen, "negative_draws": draws[: len(kept) - first]}

    def update(self, found: Iterable[tuple[str, float]]) -> None:
        """Add the highest match scores of absent prompts, in the order of the images."""
        for prompt, score in found:
            self.scores[prompt] = MEMORY * self.scores.get(prompt, score) + (1 - MEMORY) * score
