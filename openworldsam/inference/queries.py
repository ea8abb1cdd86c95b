"""The mask decoder's queries of one image, the question about it, and masks at full size.

Shapes: P prompts of the image, R queries, h = w = 4S side of the mask logits, N masks found, H, W output size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openworldsam.utils.device import upload

CHUNK_BYTES = 256 * 2**20
"""Most bytes of full-size float masks that exist at a time (at least one mask does)."""

Claims = Callable[[Tensor], Tensor]
"""Rule for the pixels that a query claims: logits to bool, element by element."""

SCORES = {"iou": "predicted IoU", "match": "match score", "product": "match score x predicted IoU"}
"""Rules for the score of a query (MODEL.INFERENCE.SCORE), and its name in words."""


class Queries(NamedTuple):
    """Queries of one image. Only the logits are on the model's device: all choices are made on the CPU.

    logits: [R, h, w] mask logits.
    predicted_iou: [R] on the CPU, in 0..1.
    labels: int64 [R] on the CPU, the prompt of each query, or its class id.
    match: [R] on the CPU, match score in 0..1; None without a score head.
    rule: of `SCORES`, which makes the scores.
    """

    logits: Tensor
    predicted_iou: Tensor
    labels: Tensor
    match: Tensor | None = None
    rule: str = "iou"

    @classmethod
    def decoded(cls, logits: Tensor, predicted_iou: Tensor, labels: Tensor, match: Tensor | None = None) -> Queries:
        """Make queries of the decoder's output; the copy to the host is the one wait, and tells whether all is finite.

        Raises:
            ValueError: a logit or score is NaN or infinite.
        """
        scores = [predicted_iou.float()] if match is None else [predicted_iou.float(), match.float()]
        host = torch.cat([*scores, logits.sum(dtype=torch.float32)[None]]).cpu()
        if not host.isfinite().all():
            raise ValueError(
                "the masks are not finite numbers: damaged weights, or values beyond the range of MODEL.PRECISION; "
                "fp32 and bf16 have the widest"
            )
        iou, *matched = host[:-1].split(len(labels)) if len(labels) else [host[:0]] * len(scores)
        return cls(logits, iou.to(predicted_iou.dtype), labels, *matched)

    @property
    def scores(self) -> Tensor:
        """Confidence [R] in 0..1 of every task, by the rule: SAM2's predicted IoU (paper Sec. 3 "Inference"), the match
        score, or their product."""
        if self.rule == "iou":
            return self.predicted_iou
        assert self.match is not None  # `by_rule`
        return self.match if self.rule == "match" else self.match * self.predicted_iou

    @property
    def evidence(self) -> Tensor:
        """Predicted IoU and match score of each query [R, 2], NaN without a score head."""
        match = torch.full_like(self.predicted_iou, torch.nan) if self.match is None else self.match
        return torch.stack([self.predicted_iou, match], dim=1)

    def by_rule(self, rule: str) -> Queries:
        """Return queries whose scores follow another rule.

        Raises:
            ValueError: it needs a match score, and there is none.
        """
        if rule != "iou" and self.match is None:
            raise ValueError(f"MODEL.INFERENCE.SCORE {rule} needs a score head (MODEL.SCORE_HEAD.HIDDEN), or set iou")
        return self._replace(rule=rule)

    def by_label(self) -> list[Tensor]:
        """Indices int64 [n] of each label's queries, labels ascending."""
        return [(self.labels == label).nonzero()[:, 0] for label in self.labels.unique()]

    def split(self, size: int) -> list[Queries]:
        """Split into parts of `size` queries, which share memory with the whole."""
        logits, iou, labels = (column.split(size) for column in (self.logits, self.predicted_iou, self.labels))
        match = [None] * len(labels) if self.match is None else self.match.split(size)
        return [Queries(*part)._replace(rule=self.rule) for part in zip(logits, iou, labels, match, strict=True)]

    def select(self, index: Tensor) -> Queries:
        """Select queries by an index on the CPU, bool [R] or int64 [n]."""
        if index.dtype == torch.bool:
            if index.all():
                return self
            index = index.nonzero()[:, 0]
        match = None if self.match is None else self.match[index]
        logits = self.logits[upload(index, self.logits.device)]
        return Queries(logits, self.predicted_iou[index], self.labels[index], match, self.rule)


def join(parts: Sequence[Queries]) -> Queries:
    """Concatenate queries of one model and rule; at least one part."""
    if len(parts) == 1:
        return parts[0]
    logits, iou, labels, match, (rule, *_) = zip(*parts, strict=True)
    matched = None if match[0] is None else torch.cat(match)
    return Queries(torch.cat(logits), torch.cat(iou), torch.cat(labels), matched, rule)


class Question(NamedTuple):
    """A question about an image: its prompts as results label them, and the size of the results.

    size: (H, W) of the results.
    class_ids: int64 [P] on the CPU, the label that results carry for each prompt.
    is_thing: bool [P] on the CPU.
    num_classes: C, size of the vocabulary.
    generalized: whether a referring expression may have several targets, or none.
    """

    size: tuple[int, int]
    class_ids: Tensor
    is_thing: Tensor
    num_classes: int
    generalized: bool = False

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        num_prompts: int,
        *,
        class_ids: Sequence[int] | Tensor | None = None,
        is_thing: Sequence[bool] | Tensor | None = None,
        num_classes: int | None = None,
        generalized: bool = False,
    ) -> Question:
        """Fill in defaults: each prompt is a class and a thing, and there are no other classes."""
        return cls(
            size,
            torch.arange(num_prompts) if class_ids is None else torch.as_tensor(class_ids, dtype=torch.long).cpu(),
            torch.ones(num_prompts, dtype=torch.bool)
            if is_thing is None
            else torch.as_tensor(is_thing, dtype=torch.bool).cpu(),
            num_prompts if num_classes is None else num_classes,
            generalized,
        )

    def by_class(self, queries: Queries) -> Queries:
        """Replace the prompts in the labels by their class ids."""
        return queries._replace(labels=self.class_ids[queries.labels])


class Found(NamedTuple):
    """The masks that a task found; all but the logits are on the CPU.

    masks: bool [N, H, W].
    scores: [N].
    labels: int64 [N], class ids, or prompts where there are no classes.
    evidence: [N, 2], see `Queries.evidence`; of the best query where a mask is not a single one's.
    logits: [N, h, w]; None where a mask is not a single query's.
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor
    evidence: Tensor
    logits: Tensor | None = None

    def at_least(self, score: float) -> Found:
        """Select the masks of at least a score."""
        kept = (self.scores >= score).nonzero()[:, 0]
        logits = None if self.logits is None else self.logits[upload(kept, self.logits.device)]
        return Found(self.masks[kept], self.scores[kept], self.labels[kept], self.evidence[kept], logits)


def upsampled(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Resize logits [R, h, w] bilinearly to (H, W), a bounded number at a time: slices of queries, logits [n, H, W]."""
    step = max(1, CHUNK_BYTES // (4 * size[0] * size[1]))
    for start in range(0, len(logits), step):
        part = slice(start, min(start + step, len(logits)))
        yield part, F.interpolate(logits[part, None], size, mode="bilinear", align_corners=False)[:, 0]


def binary_masks(logits: Tensor, size: tuple[int, int], claims: Claims) -> Tensor:
    """Make full-size masks of logits by a rule: [R, h, w] and (H, W) -> bool [R, H, W]."""
    masks = torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    for part, full_size in upsampled(logits, size):
        masks[part] = claims(full_size)
    return masks


def positive(logits: Tensor) -> Tensor:
    """Rule for instances and expressions: logit > 0."""
    return logits > 0


def probable(logits: Tensor) -> Tensor:
    """Rule for panoptic segmentation: probability >= 0.5."""
    return logits.sigmoid() >= 0.5
