"""Panoptic segmentation: every pixel to at most one segment (paper Sec. 3 "Inference", A.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openworldsam.inference.nms import mask_nms
from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.rows import MaskRows, binary_masks, probable, upsampled


class Segment(NamedTuple):
    """A segment of a panoptic map: its id there (from 1), label, thing or stuff, and predicted IoU."""

    id: int
    label: int
    is_thing: bool
    score: float


class PanopticResult(NamedTuple):
    """map: int32 [H, W], 0 where no segment is; segments in ascending order of id."""

    map: Tensor
    segments: list[Segment]


def panoptic_inference(
    rows: MaskRows, size: tuple[int, int], is_thing: dict[int, bool], options: InferenceOptions
) -> PanopticResult:
    """Turn query rows into a panoptic map.

    Confident rows lose their duplicates per label. Each pixel then goes to the row of highest score times
    probability, and stays empty where that row's probability is below 0.5. A row most of which is hidden by
    others is dropped; the stuff rows of one label share a segment.

    Args:
        rows: of things and stuff.
        size: (H, W) of the image.
        is_thing: for every label among the rows.
        options: score threshold (exclusive), NMS threshold, and overlap threshold: the smallest visible fraction,
            pixels that a row wins over pixels that it claims.
    """
    rows = rows.select(rows.scores > options.score_threshold)
    rows = rows.select(mask_nms(rows, size, options.nms_threshold, probable).sort().values)
    winner = _winning_row(rows, size)

    panoptic_map = torch.zeros(size, dtype=torch.int32, device=rows.logits.device)
    segments: list[Segment] = []
    stuff_ids: dict[int, int] = {}
    for row, (label, score) in enumerate(zip(rows.labels.tolist(), rows.scores.tolist(), strict=True)):
        won = winner == row
        claimed = binary_masks(rows.logits[row : row + 1], size, probable)[0]
        segment = won & claimed
        if not segment.any() or int(won.sum()) / int(claimed.sum()) < options.overlap_threshold:
            continue
        if label in stuff_ids:
            panoptic_map[segment] = stuff_ids[label]
            continue
        segments.append(Segment(len(segments) + 1, label, is_thing[label], score))
        panoptic_map[segment] = len(segments)
        if not is_thing[label]:
            stuff_ids[label] = len(segments)
    return PanopticResult(panoptic_map, segments)


def _winning_row(rows: MaskRows, size: tuple[int, int]) -> Tensor:
    """The row of highest score x probability at each pixel, [H, W]; of equal ones the first."""
    best = torch.full(size, -1.0, device=rows.logits.device)
    winner = torch.full(size, -1, dtype=torch.long, device=rows.logits.device)
    for part, logits in upsampled(rows.logits, size):
        value, index = (rows.scores[part, None, None] * logits.sigmoid()).max(dim=0)
        better = value > best
        best = torch.where(better, value, best)
        winner = torch.where(better, index + part.start, winner)
    return winner
