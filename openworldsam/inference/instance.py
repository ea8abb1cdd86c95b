"""Instance segmentation: filter by score, remove duplicates (paper Sec. 3 "Inference", A.2)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torchvision.ops import nms

from openworldsam.inference.nms import mask_boxes, mask_nms
from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.rows import MaskRows, binary_masks, positive, upsampled


class InstanceResult(NamedTuple):
    """N instances in descending order of score.

    masks: bool [N, H, W]; scores: [N]; labels: int64 [N]; boxes: [N, 4], x0 y0 x1 y1, right and bottom exclusive;
    logits: [N, h, w].
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor
    boxes: Tensor
    logits: Tensor


def instance_inference(rows: MaskRows, size: tuple[int, int], options: InferenceOptions) -> InstanceResult:
    """Turn query rows into instances.

    Args:
        rows: of things only; stuff is the caller's to leave out.
        size: (H, W) of the image.
        options: score threshold (inclusive), NMS threshold and rule, top k.
    """
    if options.top_k and len(rows.scores) > options.top_k:
        best = rows.scores.argsort(descending=True, stable=True)
        rows = rows.select(best[: options.top_k].sort().values)
    rows = rows.select(rows.scores >= options.score_threshold)
    if options.instance_nms == "box":
        kept = nms(_boxes(rows, size), rows.scores, options.nms_threshold)
    else:
        kept = mask_nms(rows, size, options.nms_threshold, positive)
    masks = binary_masks(rows.logits[kept], size, positive)
    covered = masks.flatten(1).any(dim=1)
    rows, masks = rows.select(kept[covered]), masks[covered]
    return InstanceResult(masks, rows.scores, rows.labels, mask_boxes(masks), rows.logits)


def _boxes(rows: MaskRows, size: tuple[int, int]) -> Tensor:
    """Boxes [R, 4] of the masks at full size, 0 where a mask has no pixel; the masks never exist all at once."""
    boxes = rows.logits.new_zeros(len(rows.logits), 4)
    for part, logits in upsampled(rows.logits, size):
        masks = positive(logits)
        covered = masks.flatten(1).any(dim=1)
        boxes[part][covered] = mask_boxes(masks[covered])
    return boxes
