"""Panoptic segmentation: every pixel to at most one segment (paper Sec. 3 "Inference", A.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openworldsam.inference.nms import mask_nms
from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.queries import Found, Queries, Question, join, probable, upsampled
from openworldsam.utils.device import upload


class PanopticSegment(NamedTuple):
    """A segment of a panoptic map: its id there (from 1), class, thing or stuff, score, and `Queries.evidence`."""

    id: int
    label: int
    is_thing: bool
    score: float
    evidence: tuple[float, float]


class PanopticResult(NamedTuple):
    """map: int32 [H, W], ids, 0 for no segment; segments: in ascending order of id."""

    map: Tensor
    segments: list[PanopticSegment]

    def found(self) -> Found:
        """A mask for each segment."""
        ids, labels = (
            torch.tensor([getattr(s, key) for s in self.segments], dtype=torch.long) for key in ("id", "label")
        )
        scores = torch.tensor([s.score for s in self.segments])
        evidence = torch.tensor([s.evidence for s in self.segments]).view(-1, 2)
        return Found(self.map.cpu() == ids[:, None, None], scores, labels, evidence)


class PanopticInference:
    """Assembles a panoptic map.

    Queries above the score threshold lose their duplicates per class. Each pixel then goes to the query of highest
    score times probability, and stays empty where that query's probability is below 0.5. A query is dropped if the
    pixels that it wins over the pixels that it claims are less than the overlap threshold; the stuff queries of one
    class share a segment.
    """

    def __init__(self, question: Question, options: InferenceOptions) -> None:
        self.question, self.options = question, options
        self.parts: list[Queries] = []
        self.claimed: list[int] = []
        """Pixels that each query claims."""

    def add(self, queries: Queries) -> None:
        queries = self.question.by_class(queries.select(queries.scores > self.options.score_threshold))
        kept, areas = mask_nms(queries, self.question.size, self.options.nms_threshold, probable)
        kept = kept.sort().values
        self.parts.append(queries.select(kept))
        self.claimed += areas[kept].tolist()

    def result(self) -> PanopticResult:
        queries = join(self.parts)
        winner, claimed = self._winners(queries)
        place = winner.flatten() + 1  # 0 where no query is
        counts = torch.zeros(2, len(queries.labels) + 1, dtype=torch.long, device=place.device)
        counts[0].scatter_add_(0, place, torch.ones_like(place))
        counts[1].scatter_add_(0, place, claimed.flatten().long())
        won, visible = counts.tolist()

        is_thing = dict(zip(self.question.class_ids.tolist(), self.question.is_thing.tolist(), strict=True))
        segments: list[PanopticSegment] = []
        segment_of = [0] * len(won)
        stuff: dict[int, int] = {}
        columns = zip(queries.labels.tolist(), queries.scores.tolist(), queries.evidence.tolist(), strict=True)
        for i, (label, score, evidence) in enumerate(columns, start=1):
            if not visible[i] or won[i] / self.claimed[i - 1] < self.options.overlap_threshold:
                continue
            if label not in stuff:
                segments.append(PanopticSegment(len(segments) + 1, label, is_thing[label], score, tuple(evidence)))
            segment_of[i] = stuff.get(label, len(segments))
            if not is_thing[label]:
                stuff[label] = segment_of[i]
        ids = upload(torch.tensor(segment_of, dtype=torch.int32), place.device)
        return PanopticResult(ids[place].view(self.question.size) * claimed, segments)

    def _winners(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """Find the query of highest score times probability at each pixel.

        Returns:
            its index, int64 [H, W], -1 without any query, the first of equal ones; and whether its probability at the
            pixel is at least 0.5, bool [H, W].
        """
        size, device = self.question.size, queries.logits.device
        scores = upload(queries.scores, device)
        best = torch.full(size, -1.0, device=device)
        winner = torch.full(size, -1, device=device)
        claimed = torch.zeros(size, dtype=torch.bool, device=device)
        for part, logits in upsampled(queries.logits, size):
            probability = logits.sigmoid()
            value, index = (scores[part, None, None] * probability).max(dim=0)
            better = value > best
            best = torch.where(better, value, best)
            winner = torch.where(better, index + part.start, winner)
            claimed = torch.where(better, probability.gather(0, index[None])[0] >= 0.5, claimed)
        return winner, claimed
