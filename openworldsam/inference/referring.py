"""Referring segmentation: the one best mask of every expression (paper Sec. 4.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.queries import Found, Queries, Question, binary_masks, join, positive
from openworldsam.utils.device import upload


class ReferringResult(NamedTuple):
    """masks: bool [P, H, W]; scores: [P] on the CPU; logits: [P, h, w]; in the order of the prompts.

    Nothing and 0 for a prompt without a query, which two-stage inference may leave.
    """

    masks: Tensor
    scores: Tensor
    logits: Tensor

    def found(self) -> Found:
        """The masks that have a pixel, labelled by prompt."""
        masks = self.masks.cpu()
        labels = masks.flatten(1).any(dim=1).nonzero()[:, 0]
        return Found(masks[labels], self.scores[labels], labels, self.logits[upload(labels, self.logits.device)])


class ReferringInference:
    """Picks the mask of highest score for each prompt, the first of equal ones; no threshold applies."""

    def __init__(self, question: Question, options: InferenceOptions) -> None:
        self.question = question
        self.parts: list[Queries] = []

    def add(self, queries: Queries) -> None:
        best = [own[queries.scores[own].argmax()] for own in queries.by_label()]
        self.parts.append(queries.select(torch.stack(best)) if best else queries)

    def result(self) -> ReferringResult:
        best, count = join(self.parts), len(self.question.class_ids)
        scores = torch.zeros(count).index_put((best.labels,), best.scores)
        logits = best.logits.new_zeros(count, *best.logits.shape[1:])
        logits[upload(best.labels, logits.device)] = best.logits
        return ReferringResult(binary_masks(logits, self.question.size, positive), scores, logits)
