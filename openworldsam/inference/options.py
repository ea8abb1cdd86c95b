"""Thresholds and rules of inference."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from openworldsam.config import arguments
from openworldsam.inference.queries import SCORES
from openworldsam.utils.text import brief

_CHOICES = {
    "score": tuple(SCORES),
    "instance_nms": ("mask", "box"),
    "semantic_weight": ("softmax", "score"),
    "two_stage_keep": ("confident", "all_expressions", "all"),
}
MATCH_THRESHOLD = 0.5
"""Threshold of match scores that nobody has calibrated."""
_THRESHOLDS = ("score_threshold", "nms_threshold", "overlap_threshold")


@dataclass(frozen=True)
class InferenceOptions:
    """The keys of MODEL.INFERENCE except TASKS, which `config.py` explains.

    score_threshold is that of the rule `score`: SCORE_THRESHOLD for "iou", MATCH_THRESHOLD for the others.

    Raises:
        ValueError: a rule of an unknown name, a threshold outside 0..1, or a negative top k.
    """

    score: str = "iou"
    score_threshold: float = 0.7
    nms_threshold: float = 0.5
    instance_nms: str = "mask"
    top_k: int = 0
    overlap_threshold: float = 0.5
    semantic_weight: str = "score"
    two_stage: bool = False
    two_stage_keep: str = "confident"

    def __post_init__(self) -> None:
        for name in _THRESHOLDS:
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
                raise ValueError(f"MODEL.INFERENCE.{name.upper()} is a number from 0 to 1, got {brief(value)}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"MODEL.INFERENCE.TOP_K is a whole number from 0, got {self.top_k!r}")
        if not isinstance(self.two_stage, bool):
            raise ValueError(f"MODEL.INFERENCE.TWO_STAGE is True or False, got {self.two_stage!r}")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"MODEL.INFERENCE.{name.upper()} is one of {choices}, got {value!r}")

    @classmethod
    def from_config(
        cls, cfg: CfgNode, score: str | None = None, stored: Mapping[str, float] | None = None
    ) -> InferenceOptions:
        """Read MODEL.INFERENCE.

        Args:
            score: in the place of SCORE.
            stored: thresholds by `score`, as they lie with the weights; they count where MATCH_THRESHOLD is 0.
        """
        keys = arguments(cfg.MODEL.INFERENCE, "TASKS")
        match_threshold, keys["score"] = keys.pop("match_threshold"), score or keys["score"]
        if not 0 <= match_threshold <= 1:
            raise ValueError(f"MODEL.INFERENCE.MATCH_THRESHOLD is a number from 0 to 1, got {match_threshold}")
        if keys["score"] != "iou":
            keys["score_threshold"] = match_threshold or (stored or {}).get(keys["score"], MATCH_THRESHOLD)
        return cls(**keys)

    def for_task(self, task: str) -> InferenceOptions:
        """Return the options with the rule of two-stage inference for a task, which is the same for most."""
        if not self.two_stage or self.two_stage_keep != "all_expressions":
            return self
        return replace(self, two_stage_keep="all" if task == "referring" else "confident")

    def threshold_of(self, task: str) -> float:
        """Return the score that masks of a task must reach; 0 for "semantic" and "referring", which have none."""
        return self.score_threshold if task in ("instance", "panoptic") else 0.0


def prompt_chunk(cfg: CfgNode, referring: bool = False) -> int:
    """Most prompts to decode together, so that memory does not grow with the vocabulary; 0 for all of an image.

    All prompts of an image stay together if their queries attend to each other, or if two-stage inference asks whether
    the image has any confident query. Expressions are decoded one by one where TEST.SENTENCES says so.
    """
    if referring and cfg.TEST.SENTENCES.endswith("alone"):
        return 1
    inference = cfg.MODEL.INFERENCE
    refined = ("all", "all_expressions") if referring else ("all",)
    together = inference.TWO_STAGE and inference.TWO_STAGE_KEEP not in refined
    together = together or cfg.MODEL.ADAPTER.INTERACTION == "image"
    return 0 if together else cfg.TEST.PROMPT_CHUNK
