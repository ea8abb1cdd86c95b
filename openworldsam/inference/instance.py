"""Instance segmentation: filter by score, remove duplicates (paper Sec. 3 "Inference", A.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from openworldsam.inference.nms import mask_boxes, mask_nms
from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.queries import Found, Queries, Question, binary_masks, join, positive, upsampled


class InstanceResult(NamedTuple):
    """N instances in descending order of score; scores and labels on the CPU.

    masks: bool [N, H, W]; scores: [N]; labels: int64 [N]; boxes: [N, 4], x0 y0 x1 y1, right and bottom exclusive;
    evidence: [N, 2], see `Queries.evidence`; logits: [N, h, w].
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor
    boxes: Tensor
    evidence: Tensor
    logits: Tensor

    def found(self) -> Found:
        return Found(self.masks.cpu(), self.scores, self.labels, self.evidence, self.logits)


class InstanceInference:
    """Collects the instances of things, from queries of at least the score threshold.

    Duplicates are removed within each class by mask IoU ("mask"), or across classes by box IoU ("box"). Top k keeps
    the best k queries, counted before duplicates are removed.
    """

    def __init__(self, question: Question, options: InferenceOptions) -> None:
        self.question, self.options = question, options
        self.parts: list[Queries] = []
        # chunks can lose their duplicates one by one, unless something compares queries of different chunks
        self.at_once = options.top_k > 0 or options.instance_nms == "box"

    def add(self, queries: Queries) -> None:
        confident = queries.scores >= self.options.score_threshold
        queries = self.question.by_class(queries.select(confident & self.question.is_thing[queries.labels]))
        self.parts.append(queries if self.at_once else self._distinct(queries))
        if self.options.top_k:
            joined = join(self.parts)
            best = joined.scores.argsort(descending=True, stable=True)[: self.options.top_k]
            self.parts = [joined.select(best.sort().values)]

    def result(self) -> InstanceResult:
        queries = join(self.parts)
        if self.at_once:
            queries = self._distinct(queries)
        queries = queries.select(queries.scores.argsort(descending=True, stable=True))
        masks = binary_masks(queries.logits, self.question.size, positive)
        boxes = mask_boxes(masks)
        return InstanceResult(masks, queries.scores, queries.labels, boxes, queries.evidence, queries.logits)

    def _distinct(self, queries: Queries) -> Queries:
        """Remove duplicates and masks without a pixel; best first."""
        size, threshold = self.question.size, self.options.nms_threshold
        if self.options.instance_nms == "mask":
            kept, areas = mask_nms(queries, size, threshold, positive)
            return queries.select(kept[areas[kept] > 0])
        boxes = [mask_boxes(positive(logits)) for _, logits in upsampled(queries.logits, size)]
        corners = torch.cat([queries.logits.new_zeros(0, 4), *boxes]).cpu()
        kept = nms(corners, queries.scores, threshold)
        return queries.select(kept[corners[kept, 2] > 0])
