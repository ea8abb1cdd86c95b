"""Removal of duplicate masks.

Shapes: N masks, H, W size of the image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openworldsam.inference.queries import Claims, Queries, binary_masks

PIXELS_AT_ONCE = 2**20
"""Pixels multiplied at a time: bounds the float copies, and keeps every partial sum exact in float32."""


def mask_intersections(masks: Tensor) -> Tensor:
    """Count the pixels that each pair of masks shares: bool [N, H, W] -> int64 [N, N] on the same device."""
    shared = torch.zeros(len(masks), len(masks), dtype=torch.long, device=masks.device)
    with torch.autocast(masks.device.type, enabled=False):  # half precision cannot count pixels
        for part in masks.flatten(1).split(PIXELS_AT_ONCE, dim=1):
            values = part.float()
            shared += (values @ values.T).long()
    return shared


def iou_of(intersections: Tensor) -> Tensor:
    """IoU of each pair, float64 [N, N], from `mask_intersections` on the CPU; 0 for a pair of empty masks."""
    areas = intersections.diagonal()
    return intersections.double() / (areas[:, None] + areas - intersections).clamp(min=1)


def mask_iou(masks: Tensor) -> Tensor:
    """IoU of each pair of masks: bool [N, H, W] -> float64 [N, N] on the CPU."""
    return iou_of(mask_intersections(masks).cpu())


def greedy_nms(iou: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Keep the best mask, drop those that overlap it by more than the threshold, and repeat with the rest.

    From iou [N, N] and scores [N], on the CPU, to the masks kept, int64 [n], in descending order of score; of equal
    scores the earlier mask is better.
    """
    duplicate = (iou > threshold).numpy()
    alive = torch.ones(len(scores), dtype=torch.bool).numpy()
    kept = []
    for mask in torch.argsort(scores, descending=True, stable=True).tolist():
        if alive[mask]:
            kept.append(mask)
            alive &= ~duplicate[mask]
    return torch.tensor(kept, dtype=torch.long)


def mask_nms(queries: Queries, size: tuple[int, int], threshold: float, claims: Claims) -> tuple[Tensor, Tensor]:
    """Remove duplicate masks within each class.

    Masks of different classes need no product, and only one class's masks exist at full size at a time; the counts
    of all classes reach the CPU together.

    Args:
        queries: R queries, labelled by class.
        size: (H, W) at which masks are compared.
        threshold: a mask goes whose IoU with a better one of its class exceeds this.
        claims: the rule that makes masks of logits.

    Returns:
        int64 [n], the queries kept, in descending order of score; int64 [R], the pixels that each query claims.
    """
    areas = torch.zeros_like(queries.labels)
    classes = queries.by_label()
    if not classes:
        return areas, areas
    counts = torch.cat(
        [mask_intersections(binary_masks(queries.select(index).logits, size, claims)).flatten() for index in classes]
    ).cpu()
    kept = []
    for index, count in zip(classes, counts.split([len(index) ** 2 for index in classes]), strict=True):
        intersections = count.view(len(index), len(index))
        areas[index] = intersections.diagonal()
        kept.append(index[greedy_nms(iou_of(intersections), queries.scores[index], threshold)])
    indices = torch.cat(kept).sort().values
    return indices[torch.argsort(queries.scores[indices], descending=True, stable=True)], areas


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes: bool [N, H, W] -> float32 [N, 4], x0 y0 x1 y1, right and bottom exclusive; 0 for an empty mask."""
    corners = []
    for covered in (masks.any(dim=1).int(), masks.any(dim=2).int()):  # [N, W], [N, H]
        corners.append((covered.argmax(dim=1), covered.shape[1] - covered.flip(1).argmax(dim=1)))
    (x0, x1), (y0, y1) = corners
    return (torch.stack([x0, y0, x1, y1], dim=1) * masks.flatten(1).any(dim=1)[:, None]).float()


def layer_order(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Order masks [N, H, W] from bottom to top, int64 [N]: smaller above larger, of equal ones the higher score."""
    return np.lexsort((scores, -masks.sum(axis=(1, 2))))
