"""Referring segmentation: the best mask of every expression (paper Sec. 4.3), or the union of all that it means."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from openworldsam.inference.instance import InstanceInference
from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.queries import Found, Queries, Question, binary_masks, join, positive
from openworldsam.utils.device import upload


class ReferringResult(NamedTuple):
    """masks: bool [P, H, W]; scores: [P] on the CPU; evidence: [P, 2], see `Queries.evidence`; logits: [P, h, w].

    All are in the order of the prompts.

    A prompt without a target, or without a query after two-stage inference, has an empty mask and score 0. There are
    no logits where a mask is not a single query's.
    """

    masks: Tensor
    scores: Tensor
    evidence: Tensor
    logits: Tensor | None

    def found(self) -> Found:
        """The masks that have a pixel, labelled by prompt."""
        masks = self.masks.cpu()
        labels = masks.flatten(1).any(dim=1).nonzero()[:, 0]
        logits = None if self.logits is None else self.logits[upload(labels, self.logits.device)]
        return Found(masks[labels], self.scores[labels], labels, self.evidence[labels], logits)


class ReferringInference:
    """Picks the mask of highest score for each prompt, the first of equal ones; no threshold applies."""

    def __init__(self, question: Question, options: InferenceOptions) -> None:
        self.question = question
        self.parts: list[Queries] = []

    def add(self, queries: Queries) -> None:
        best = [index[queries.scores[index].argmax()] for index in queries.by_label()]
        self.parts.append(queries.select(torch.stack(best)) if best else queries)

    def result(self) -> ReferringResult:
        best, count = join(self.parts), len(self.question.class_ids)
        scores = torch.zeros(count).index_put((best.labels,), best.scores)
        evidence = torch.zeros(count, 2).index_put((best.labels,), best.evidence)
        logits = best.logits.new_zeros(count, *best.logits.shape[1:])
        logits[upload(best.labels, logits.device)] = best.logits
        return ReferringResult(binary_masks(logits, self.question.size, positive), scores, evidence, logits)


class GeneralizedReferringInference:
    """Unites the instances of each prompt; a prompt without any refers to nothing (gRefCOCO).

    Duplicates are removed within each prompt by mask IoU, whatever the rule for instances, since different expressions
    may well refer to the same thing.
    """

    def __init__(self, question: Question, options: InferenceOptions) -> None:
        prompts = torch.arange(len(question.class_ids))
        self.question = question._replace(class_ids=prompts, is_thing=torch.ones_like(prompts, dtype=torch.bool))
        self.instances = InstanceInference(self.question, replace(options, instance_nms="mask", top_k=0))

    def add(self, queries: Queries) -> None:
        self.instances.add(queries)

    def result(self) -> ReferringResult:
        found, count = self.instances.result(), len(self.question.class_ids)
        masks = torch.zeros(count, *self.question.size, dtype=torch.bool, device=found.masks.device)
        for prompt, mask in zip(found.labels.tolist(), found.masks, strict=True):
            masks[prompt] |= mask
        scores = torch.zeros(count).scatter_reduce(0, found.labels, found.scores, "amax")
        evidence = torch.zeros(count, 2)
        for prompt, of_mask in zip(found.labels.tolist()[::-1], found.evidence.flip(0), strict=True):
            evidence[prompt] = of_mask  # the best comes first, so it is written last
        return ReferringResult(masks, scores, evidence, None)


def referring_inference(
    question: Question, options: InferenceOptions
) -> ReferringInference | GeneralizedReferringInference:
    """Return the inference for expressions of one target each, or of any number."""
    return (GeneralizedReferringInference if question.generalized else ReferringInference)(question, options)
