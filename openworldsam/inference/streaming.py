"""Rows that come in parts, each with all rows of its labels: what of a part can still matter for the whole.

Inference on the joined useful rows of all parts equals inference on all rows: thresholds and duplicates within a label
concern no other label. Semantic segmentation needs every row; see `SemanticMerge`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openworldsam.inference.nms import mask_nms
from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.rows import MaskRows, positive, probable


def useful_rows(task: str, rows: MaskRows, size: tuple[int, int], options: InferenceOptions) -> MaskRows:
    """The rows of a part that inference may use, in their order.

    Few are left, as a rule: those above the threshold, without duplicates. Not so where instances of all classes are
    compared by their boxes, since a row may come back when another class removes the one that it duplicates.

    Args:
        task: "instance", "panoptic" or "referring".
        rows: of instances things only.
        size: (H, W) of the image.
        options: of the inference that follows.
    """
    if task == "referring":
        best = [own[rows.scores[own].argmax()] for own in _by_label(rows)]
        return rows.select(torch.stack(best).sort().values) if best else rows
    if task == "panoptic":
        rows = rows.select(rows.scores > options.score_threshold)
        return rows.select(mask_nms(rows, size, options.nms_threshold, probable).sort().values)
    rows = rows.select(rows.scores >= options.score_threshold)
    if options.top_k:  # counts duplicates too
        return rows.select(rows.scores.argsort(descending=True, stable=True)[: options.top_k].sort().values)
    if options.instance_nms == "box":
        return rows
    return rows.select(mask_nms(rows, size, options.nms_threshold, positive).sort().values)


def join_rows(parts: Sequence[MaskRows]) -> MaskRows:
    """One after the other; at least one part."""
    logits, scores, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return MaskRows(logits, scores, labels)


def _by_label(rows: MaskRows) -> list[torch.Tensor]:
    return [torch.nonzero(rows.labels == label)[:, 0] for label in rows.labels.unique()]
