"""Two-stage inference: masks go back to the decoder as prompts (paper Sec. 3 "Inference", Sec. B)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.rows import MaskRows


def refine(rows: MaskRows, options: InferenceOptions, decode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> MaskRows:
    """Replace masks and scores by those of a second pass.

    Args:
        rows: of one image.
        options: the keep rule. "confident" refines the rows of at least the score threshold, and the others vanish;
            where there is none, nothing is refined. "all" refines every row.
        decode: mask logits [n, h, w] as prompts to new logits [n, h, w] and predicted IoU [n].
    """
    if options.two_stage_keep == "confident":
        confident = rows.scores >= options.score_threshold
        if not confident.any():
            return rows
        rows = rows.select(confident)
    logits, scores = decode(rows.logits)
    return MaskRows(logits, scores, rows.labels)
