"""Two-stage inference: masks go back to the decoder as prompts (paper Sec. 3 "Inference", Sec. B)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.queries import Queries


def refine(queries: Queries, options: InferenceOptions, decode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Queries:
    """Replace masks and predicted IoU by those of a second pass; the match score, which knows the prompt, stays.

    Args:
        queries: of one image.
        options: the keep rule. "all" refines every query. Otherwise those of at least the score threshold are refined,
            and the others vanish; where there is none, nothing is refined.
        decode: mask logits [n, h, w] as prompts to new logits [n, h, w] and predicted IoU [n].
    """
    queries = queries.by_rule(options.score)
    if options.two_stage_keep != "all":
        confident = queries.scores >= options.score_threshold
        if not confident.any():
            return queries
        queries = queries.select(confident)
    logits, predicted_iou = decode(queries.logits)
    return Queries.decoded(logits, predicted_iou, queries.labels)._replace(match=queries.match, rule=queries.rule)
