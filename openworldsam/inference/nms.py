"""Removal of duplicate masks.

Shapes: N masks, H, W size of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from openworldsam.inference.rows import Claims, MaskRows, binary_masks

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
    with torch.autocast(masks.device.type, enabled=False):  # half precision cannot count pixels
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


def mask_nms(rows: MaskRows, size: tuple[int, int], threshold: float, claims: Claims) -> Tensor:
    """Remove duplicate masks within each class.

    Classes are compared one after the other: masks of different classes need no product, and only one class's
    masks exist at full size at a time.

    Args:
        rows: N query rows.
        size: (H, W) at which masks are compared.
        threshold: a mask goes whose IoU with a better one of its class exceeds this.
        claims: the rule that makes masks of logits.

    Returns:
        int64 [n] on the device of `rows`, the rows kept, in descending order of score.
    """
    kept = []
    for label in rows.labels.unique():
        own = torch.nonzero(rows.labels == label)[:, 0]
        iou = mask_iou(binary_masks(rows.logits[own], size, claims))
        kept.append(own[greedy_nms(iou, rows.scores[own], threshold).to(own.device)])
    indices = torch.cat(kept).sort().values if kept else rows.labels.new_zeros(0)
    return indices[torch.argsort(rows.scores[indices], descending=True, stable=True)]


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of non-empty masks: bool [N, H, W] -> float [N, 4], x0 y0 x1 y1, right and bottom exclusive."""
    boxes = masks_to_boxes(masks) if len(masks) else masks.new_zeros(0, 4, dtype=torch.float32)
    boxes[:, 2:] += 1
    return boxes
