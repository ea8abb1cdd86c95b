"""Removal of duplicate masks.

Shapes: N masks, H, W size of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

PIXELS = 2**20
"""Pixels multiplied at a time: bounds the float copies, and keeps every partial sum exact in float32."""


def mask_iou(masks: Tensor) -> Tensor:
    """Intersection over union of every pair of masks, by matrix products.

    Args:
        masks: bool [N, H, W].

    Returns:
        float64 [N, N]; 0 for a pair of empty masks.
    """
    flat = masks.flatten(1)
    intersection = torch.zeros(len(masks), len(masks), dtype=torch.float64, device="cpu")
    for part in flat.split(PIXELS, dim=1):
        values = part.float()
        intersection += (values @ values.T).cpu()
    area = intersection.diagonal()
    union = area[:, None] + area[None] - intersection
    return intersection / union.clamp(min=1)


def greedy_nms(iou: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Keep the best row, drop what overlaps it by more than `threshold`, go on with the best of the rest.

    Args:
        iou: [N, N].
        scores: [N]; of equal scores the earlier row is better.
        threshold: IoU.

    Returns:
        int64 [n] on the CPU, the rows kept, in descending order of score.
    """
    order = torch.argsort(scores.cpu(), descending=True, stable=True).tolist()
    duplicate = (iou.cpu() > threshold).numpy()
    alive = torch.ones(len(order), dtype=torch.bool).numpy()
    kept = []
    for row in order:
        if alive[row]:
            kept.append(row)
            alive &= ~duplicate[row]
    return torch.tensor(kept, dtype=torch.long)


def mask_nms(masks: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Remove duplicate masks within each class.

    Args:
        masks: bool [N, H, W].
        scores: [N].
        labels: int64 [N].
        threshold: a mask goes whose IoU with a better one of its class exceeds this.

    Returns:
        int64 [n] on the device of `masks`, the rows kept, in descending order of score.
    """
    kept = []
    for label in labels.unique():
        rows = torch.nonzero(labels == label)[:, 0]
        kept.append(rows[greedy_nms(mask_iou(masks[rows]), scores[rows], threshold).to(rows.device)])
    rows = torch.cat(kept).sort().values if kept else labels.new_zeros(0)
    return rows[torch.argsort(scores[rows], descending=True, stable=True)]


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of non-empty masks: bool [N, H, W] -> float [N, 4], x0 y0 x1 y1, right and bottom exclusive."""
    boxes = masks_to_boxes(masks) if len(masks) else masks.new_zeros(0, 4, dtype=torch.float32)
    boxes[:, 2:] += 1
    return boxes


def box_nms(masks: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Remove duplicates by the boxes of their masks, whatever their class (the released code).

    Args:
        masks: bool [N, H, W], none empty.
        scores: [N].
        threshold: IoU of boxes.

    Returns:
        int64 [n] on the device of `masks`, the rows kept, in descending order of score.
    """
    return nms(mask_boxes(masks), scores, threshold)
