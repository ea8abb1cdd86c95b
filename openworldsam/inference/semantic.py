"""Semantic segmentation: merge the masks of a class, weighted by confidence (paper Sec. 3 "Inference").

Shapes: L distinct classes among the queries, H, W output size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.queries import Found, Queries, Question, upsampled
from openworldsam.utils.device import upload


class SemanticResult(NamedTuple):
    """map: int64 [H, W], the class of every pixel, -1 without any query; best: score and `Queries.evidence` of the best
    query of each class, [3]."""

    map: Tensor
    best: dict[int, Tensor]

    def found(self) -> Found:
        """A mask for each class in the map."""
        label_map = self.map.cpu()
        labels = label_map.unique()
        labels = labels[labels >= 0]
        best = torch.stack([*(self.best[label] for label in labels.tolist()), torch.zeros(3)])[:-1]
        return Found(label_map == labels[:, None, None], best[:, 0], labels, best[:, 1:])


class SemanticInference:
    """Labels every pixel with the arg-max of `semantic_scores`, one class at a time; ties go to the smaller class id.

    Chunks that hold all queries of their classes give the exact result: the score of a class does not depend on the
    queries of others, except for a term of "softmax" that is the same for all classes.
    """

    def __init__(self, question: Question, options: InferenceOptions) -> None:
        self.question, self.options = question, options
        self.best = torch.full(question.size, -torch.inf)
        self.labels = torch.full(question.size, -1)
        self.best_query: dict[int, Tensor] = {}

    def add(self, queries: Queries) -> None:
        queries = self.question.by_class(queries)
        self.best, self.labels = (upload(part, queries.logits.device) for part in (self.best, self.labels))
        for label, of_class, score in _class_scores(queries, self.question, self.options):
            best = of_class.scores.argmax()
            self.best_query[label] = torch.cat([of_class.scores[best, None], of_class.evidence[best]])
            better = (score > self.best) | ((score == self.best) & (label < self.labels))
            self.best = torch.where(better, score, self.best)
            self.labels = torch.where(better, label, self.labels)

    def result(self) -> SemanticResult:
        return SemanticResult(self.labels, self.best_query)


def semantic_scores(queries: Queries, question: Question, options: InferenceOptions) -> tuple[Tensor, Tensor]:
    """Score every pixel for every class that was asked for.

    With "softmax" each query's score s stands at its class in a vector of C + 1 zeros; its softmax weights the
    query's probability m for all classes. In closed form, with queries q of class c:

        S_c = sum_{q in c} (e^s_q - 1) / (e^s_q + C) m_q  +  sum_q 1 / (e^s_q + C) m_q

    The second sum is the same for every class; a class that was not asked for has that score alone.
    With "score", S_c = sum_{q in c} s_q m_q.

    Args:
        queries: labelled by prompt; no threshold applies.
        question: output size, classes and vocabulary.
        options: the semantic weight.

    Returns:
        the classes int64 [L], ascending, and their scores [L, H, W].
    """
    queries = question.by_class(queries)
    labels = queries.labels.unique()
    scores = queries.logits.new_zeros(len(labels), *question.size)
    for index, (_, _, score) in enumerate(_class_scores(queries, question, options)):
        scores[index] = score
    if options.semantic_weight == "softmax":
        scores += _weighted_sum(1 / (queries.scores.exp() + question.num_classes), queries.logits, question.size)
    return labels, scores


def _class_scores(
    queries: Queries, question: Question, options: InferenceOptions
) -> Iterator[tuple[int, Queries, Tensor]]:
    """Yield each class, ascending, with its queries and their weighted sum [H, W]."""
    for label in queries.labels.unique().tolist():
        of_class = queries.select(queries.labels == label)
        weights = of_class.scores
        if options.semantic_weight == "softmax":
            weights = of_class.scores.expm1() / (of_class.scores.exp() + question.num_classes)
        yield label, of_class, _weighted_sum(weights, of_class.logits, question.size)


def _weighted_sum(weights: Tensor, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """sum_q w_q sigmoid(logit_q) at full size: weights [n] on the CPU, logits [n, h, w] -> [H, W]."""
    weights, total = upload(weights, logits.device), torch.zeros(size, device=logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        for part, full_size in upsampled(logits, size):
            total += torch.einsum("q,qhw->hw", weights[part], full_size.sigmoid())
    return total
