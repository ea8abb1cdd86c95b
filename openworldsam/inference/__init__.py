"""The one way from queries to results: `infer` hands the queries of an image, chunk by chunk, to each task.

A task is a class with `add(queries)` and `result()`. All choices (thresholds, duplicates, ties) are made on the CPU,
with a number of waits for the device that does not depend on the number of prompts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch

from openworldsam.inference.instance import InstanceInference, InstanceResult
from openworldsam.inference.options import MATCH_THRESHOLD, InferenceOptions, prompt_chunk
from openworldsam.inference.panoptic import PanopticInference, PanopticResult, PanopticSegment
from openworldsam.inference.queries import SCORES, Found, Queries, Question
from openworldsam.inference.referring import ReferringResult, referring_inference
from openworldsam.inference.refine import refine
from openworldsam.inference.semantic import SemanticInference, SemanticResult, semantic_scores

TASKS: dict[str, Any] = {
    "semantic": SemanticInference,
    "instance": InstanceInference,
    "panoptic": PanopticInference,
    "referring": referring_inference,
}


def infer(
    chunks: Iterable[Queries], tasks: Collection[str], question: Question, options: InferenceOptions
) -> dict[str, Any]:
    """Answer tasks about one image.

    Args:
        chunks: queries labelled by prompt, at least one chunk, each with all queries of its prompts; prompts ascend.
        tasks: of `TASKS`.
        question: what was asked, and the size of the results.
        options: thresholds and rules.

    Returns:
        the result of each task, such as an `InstanceResult`, by its name; and best_scores [P], the highest score of
        each prompt's queries, 0 without any.
    """
    inferences = {task: TASKS[task](question, options) for task in tasks}
    best_scores = torch.zeros(len(question.class_ids))
    for chunk in chunks:
        queries = chunk.by_rule(options.score)
        best_scores = best_scores.scatter_reduce(0, queries.labels, queries.scores, "amax")
        for inference in inferences.values():
            inference.add(queries)
    return {task: inference.result() for task, inference in inferences.items()} | {"best_scores": best_scores}


__all__ = [
    "MATCH_THRESHOLD",
    "SCORES",
    "TASKS",
    "Found",
    "InferenceOptions",
    "InstanceResult",
    "PanopticResult",
    "PanopticSegment",
    "Queries",
    "Question",
    "ReferringResult",
    "SemanticResult",
    "infer",
    "prompt_chunk",
    "refine",
    "semantic_scores",
]
