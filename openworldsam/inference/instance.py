"""Instance segmentation: filter by score, remove duplicates (paper Sec. 3 "Inference", A.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openworldsam.inference.nms import box_nms, mask_boxes, mask_nms
from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.rows import MaskRows, upsampled


class InstanceResult(NamedTuple):
    """N instances in descending order of score.

    masks: bool [N, H, W]; scores: [N]; labels: int64 [N]; boxes: [N, 4], x0 y0 x1 y1, right and bottom exclusive.
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor
    boxes: Tensor


def instance_inference(rows: MaskRows, size: tuple[int, int], options: InferenceOptions) -> InstanceResult:
    """Turn query rows into instances.

    Args:
        rows: of things only; stuff is the caller's to leave out.
        size: (H, W) of the picture.
        options: score threshold (inclusive), NMS threshold and rule, top k.
    """
    if options.top_k and len(rows.scores) > options.top_k:
        best = rows.scores.argsort(descending=True, stable=True)
        rows = rows.select(best[: options.top_k].sort().values)
    rows = rows.select(rows.scores >= options.score_threshold)
    masks = torch.zeros(len(rows.scores), *size, dtype=torch.bool, device=rows.logits.device)
    for part, logits in upsampled(rows.logits, size):
        masks[part] = logits > 0
    covered = masks.flatten(1).any(dim=1)
    masks, rows = masks[covered], rows.select(covered)
    if options.instance_nms == "box":
        kept = box_nms(masks, rows.scores, options.nms_threshold)
    else:
        kept = mask_nms(masks, rows.scores, rows.labels, options.nms_threshold)
    masks = masks[kept]
    return InstanceResult(masks, rows.scores[kept], rows.labels[kept], mask_boxes(masks))
