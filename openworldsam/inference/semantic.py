"""Semantic segmentation: merge the masks of a class, weighted by confidence (paper Sec. 3 "Inference").

Shapes: L distinct labels among the rows, H, W size of the image.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.rows import MaskRows, upsampled


def semantic_scores(
    rows: MaskRows, size: tuple[int, int], num_classes: int, options: InferenceOptions
) -> tuple[Tensor, Tensor]:
    """Score of every pixel for every label that was asked for.

    With "softmax" each row's score s stands at its class in a vector of C + 1 zeros; its softmax weights the
    row's probability m for all classes. In closed form, with rows q of class c:

        S_c = sum_{q in c} (e^s_q - 1) / (e^s_q + C) m_q  +  sum_q 1 / (e^s_q + C) m_q

    The second sum is the same for every class; a class that was not asked for has that score alone.
    With "score", S_c = sum_{q in c} s_q m_q.

    Args:
        rows: of the image; no threshold applies.
        size: (H, W).
        num_classes: C, size of the vocabulary.
        options: the semantic weight.

    Returns:
        the labels int64 [L], ascending, and their scores [L, H, W].
    """
    labels = rows.labels.unique()
    scores = rows.logits.new_zeros(len(labels), *size)
    for index, (_, score) in enumerate(_class_scores(rows, size, num_classes, options)):
        scores[index] = score
    if options.semantic_weight == "softmax":
        common = 1 / (rows.scores.exp() + num_classes)
        for part, logits in upsampled(rows.logits, size):
            scores += _weighted_sum(common[part], logits)
    return labels, scores


def semantic_inference(rows: MaskRows, size: tuple[int, int], num_classes: int, options: InferenceOptions) -> Tensor:
    """Label of every pixel: int64 [H, W], the arg-max of `semantic_scores` held one class at a time.

    Of equal scores the smallest label wins. Without any row every pixel is -1.

    Args:
        rows, size, num_classes, options: as for `semantic_scores`.
    """
    merge = SemanticMerge(size, num_classes, options, rows.logits.device)
    merge.add(rows)
    return merge.labels


class SemanticMerge:
    """`semantic_inference` of rows that come in parts, each with all rows of its classes.

    Parts add up exactly: no class's score depends on another's rows, but for what "softmax" adds to all alike.

    Args:
        size, num_classes, options: as for `semantic_scores`.
        device: of the rows.
    """

    def __init__(
        self, size: tuple[int, int], num_classes: int, options: InferenceOptions, device: torch.device
    ) -> None:
        self.size, self.num_classes, self.options = size, num_classes, options
        self.best = torch.full(size, -torch.inf, device=device)
        self.labels = torch.full(size, -1, device=device)
        """int64 [H, W], the label of every pixel so far."""

    def add(self, rows: MaskRows) -> None:
        """Add some classes."""
        for label, score in _class_scores(rows, self.size, self.num_classes, self.options):
            better = (score > self.best) | ((score == self.best) & (label < self.labels))
            self.best = torch.where(better, score, self.best)
            self.labels = torch.where(better, label, self.labels)


def _class_scores(
    rows: MaskRows, size: tuple[int, int], num_classes: int, options: InferenceOptions
) -> Iterator[tuple[int, Tensor]]:
    """Each label, ascending, with the sum [H, W] over its own rows."""
    for label in rows.labels.unique().tolist():
        own = rows.select(rows.labels == label)
        weights = own.scores
        if options.semantic_weight == "softmax":
            weights = own.scores.expm1() / (own.scores.exp() + num_classes)
        score = torch.zeros(size, device=rows.logits.device)
        for part, logits in upsampled(own.logits, size):
            score += _weighted_sum(weights[part], logits)
        yield label, score


def _weighted_sum(weights: Tensor, logits: Tensor) -> Tensor:
    """sum_q w_q sigmoid(logit_q): weights [n], logits [n, H, W] -> [H, W]."""
    with torch.autocast(logits.device.type, enabled=False):
        return torch.einsum("q,qhw->hw", weights, logits.sigmoid())
