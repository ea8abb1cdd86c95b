"""The decoder's output for one image, and how it is brought to the size of the image.

Shapes: R query rows of the image, h = w = 4S mask side, H, W size of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_BYTES = 256 * 2**20
"""Full-size float masks that exist at a time, at most (one at least)."""

Claims = Callable[[Tensor], Tensor]
"""Which pixels a row claims: logits to bool, element by element."""


class MaskRows(NamedTuple):
    """Query rows of one image.

    logits: [R, h, w] mask logits.
    scores: [R] predicted IoU in 0..1.
    labels: int64 [R], what each row was asked for: an index of a prompt, or its class id.
    """

    logits: Tensor
    scores: Tensor
    labels: Tensor

    def select(self, rows: Tensor) -> MaskRows:
        """Some of the rows: bool [R] or indices [n]."""
        return MaskRows(self.logits[rows], self.scores[rows], self.labels[rows])

    def best_scores(self, count: int) -> Tensor:
        """The best score of each label below `count`, 0 without a row: [count]."""
        return self.scores.new_zeros(count).scatter_reduce(0, self.labels, self.scores, "amax")


def upsampled(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Resize masks bilinearly, a bounded number at a time.

    Args:
        logits: [R, h, w].
        size: (H, W).

    Yields:
        the slice of rows and their logits [n, H, W].
    """
    step = max(1, CHUNK_BYTES // (4 * size[0] * size[1]))
    for start in range(0, len(logits), step):
        part = slice(start, min(start + step, len(logits)))
        yield part, F.interpolate(logits[part, None], size, mode="bilinear", align_corners=False)[:, 0]


def binary_masks(logits: Tensor, size: tuple[int, int], claims: Claims) -> Tensor:
    """Full-size masks: logits [R, h, w] and (H, W) -> bool [R, H, W]."""
    masks = torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    for part, full_size in upsampled(logits, size):
        masks[part] = claims(full_size)
    return masks


def positive(logits: Tensor) -> Tensor:
    """The masks of instances and expressions: logit > 0."""
    return logits > 0


def probable(logits: Tensor) -> Tensor:
    """The masks of panoptic segmentation: probability >= 0.5."""
    return logits.sigmoid() >= 0.5
