"""The predictor's result.

Shapes: P prompts, N masks found, H, W size of the image, h = w = 4S side of the mask decoder's masks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openworldsam.inference import Found
from openworldsam.inference.nms import mask_boxes

LISTED = 20
"""Up to this many prompts, a summary lists those without a mask too."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The N masks found in an image of H x W pixels.

    task: "semantic", "instance", "panoptic", "referring", or "interactive" (clicks).
    prompts: the P texts, trimmed and each once; ("object",) for clicks that no text goes with.
    masks: bool [N, H, W]; disjoint for semantic and panoptic.
    scores: float32 [N] in 0..1 by MODEL.INFERENCE.SCORE (semantic: of the best query; clicks: predicted IoU).
    predicted_iou: float32 [N], SAM2's own score, which knows no name.
    match: float32 [N], the score head's: how well the mask fits its prompt; NaN without one.
    boxes: float32 [N, 4], x0 y0 x1 y1 in pixels, right and bottom exclusive.
    prompt_index: int64 [N], index of the prompt of each mask.
    is_thing: bool [N]; False where the prompt names stuff.
    label_map: int32 [H, W], 0 where there is no mask, n + 1 for masks[n]; where masks overlap the best score wins.
    threshold: smallest score of a mask; 0 without one.
    best_score: highest score of any query, found or not; 0 without prompts.
    logits: float32 [N, h, w] within -32..32 as in SAM2, the masks as the decoder gave them, for `click`; None for
        semantic and panoptic, where a mask is not a single query's, and where they were not kept.
    """

    task: str
    prompts: tuple[str, ...]
    masks: np.ndarray
    scores: np.ndarray
    predicted_iou: np.ndarray
    match: np.ndarray
    boxes: np.ndarray
    prompt_index: np.ndarray
    is_thing: np.ndarray
    label_map: np.ndarray
    threshold: float
    best_score: float
    logits: np.ndarray | None

    @classmethod
    def of(
        cls,
        found: Found,
        task: str,
        prompts: Sequence[str],
        *,
        is_thing: Sequence[bool],
        threshold: float,
        best_score: float,
    ) -> Prediction:
        """Convert what a task found, labelled by prompt, to NumPy; is_thing is that of the P prompts."""
        masks, scores, labels, evidence = (part.numpy() for part in found[:4])
        label_map = np.zeros(masks.shape[1:], dtype=np.int32)
        for index in np.argsort(scores, kind="stable"):
            label_map[masks[index]] = index + 1
        return cls(
            task=task,
            prompts=tuple(prompts),
            masks=masks,
            scores=scores,
            predicted_iou=evidence[:, 0],
            match=evidence[:, 1],
            boxes=mask_boxes(found.masks).numpy(),
            prompt_index=labels,
            is_thing=np.array(is_thing, dtype=bool)[labels],
            label_map=label_map,
            threshold=threshold,
            best_score=best_score,
            logits=None if found.logits is None else found.logits.float().clamp(-32, 32).cpu().numpy(),
        )

    def mask_prompt(self, n: int) -> np.ndarray:
        """Return mask n as an argument of `click`: its logits if they were kept, otherwise its pixels."""
        return self.masks[n] if self.logits is None else self.logits[n]

    @property
    def summary(self) -> str:
        """Counts in a line, such as "zebra 3, grass 0", or why nothing was found.

        More than `LISTED` prompts: only those with a mask.
        """
        if len(self.masks):
            counts = Counter(self.prompt_index.tolist())
            listed = [i for i in range(len(self.prompts)) if counts[i] or len(self.prompts) <= LISTED]
            return ", ".join(f"{self.prompts[i]} {counts[i]}" for i in listed)
        if not self.prompts:
            return "nothing was asked for"
        return why_nothing(self.task, self.threshold, self.best_score)


def why_nothing(task: str, threshold: float, best_score: float) -> str:
    """Explain in words why a prediction, or the best of several, has no mask."""
    best = math.floor(100 * best_score) / 100  # down, or a best of 0.699 would seem to reach 0.7
    if best_score > threshold if task == "panoptic" else best_score >= threshold:
        return f"no mask has a pixel (best score {best:.2f})"
    return f"no mask passed the threshold {threshold:g} (best {best:.2f})"
