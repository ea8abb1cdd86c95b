"""Referring segmentation: the one best mask of every expression (paper Sec. 4.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openworldsam.inference.rows import MaskRows, binary_masks, positive


class ReferringResult(NamedTuple):
    """labels: int64 [L], ascending; masks: bool [L, H, W]; scores: [L] predicted IoU; logits: [L, h, w]."""

    labels: Tensor
    masks: Tensor
    scores: Tensor
    logits: Tensor


def referring_inference(rows: MaskRows, size: tuple[int, int]) -> ReferringResult:
    """For each label among the rows, the mask of highest predicted IoU; of equal ones the first.

    Args:
        rows: of the image; no threshold applies.
        size: (H, W).
    """
    labels = rows.labels.unique()
    best = [
        candidates[rows.scores[candidates].argmax()]
        for candidates in (torch.nonzero(rows.labels == label)[:, 0] for label in labels)
    ]
    chosen = rows.select(torch.stack(best) if best else labels)
    return ReferringResult(labels, binary_masks(chosen.logits, size, positive), chosen.scores, chosen.logits)
