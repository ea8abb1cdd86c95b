"""Predictions of many pictures at once.

Shapes: P prompts, H, W size of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openworldsam.annotate.prompts import Prompts
from openworldsam.data.preprocessing import to_tensor
from openworldsam.evaluation.streaming import predict
from openworldsam.modeling import OpenWorldSAM
from openworldsam.predictor.prediction import Found, Prediction


def predict_batch(
    model: OpenWorldSAM, images: Sequence[np.ndarray], prompts: Prompts, task: str, chunk: int
) -> Iterator[Prediction]:
    """What `OpenWorldSAMPredictor.predict` says of each picture, from one pass over all of them.

    Args:
        model: in eval mode.
        images: uint8 [H, W, 3] each.
        prompts: what all of them are asked.
        task: "semantic", "instance", "panoptic" or "referring".
        chunk: prompts that are decoded together, see `evaluation.streaming.chunk_of`.
    """
    texts, is_thing = prompts
    # stuff is told apart by panoptic segmentation alone, as the predictor does
    asked = {"prompts": list(texts), "is_thing": list(is_thing) if task == "panoptic" else [True] * len(texts)}
    batch = [
        {"image": to_tensor(image), "height": image.shape[0], "width": image.shape[1], **asked} for image in images
    ]
    threshold = model.inference.threshold_of(task)
    for result in predict(model, batch, (task,), chunk):
        best_score = float(result["best_scores"].max())
        found = Found(*_found(task, result))
        yield Prediction.of(found, task, texts, is_thing=is_thing, threshold=threshold, best_score=best_score)


def _found(task: str, result: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Masks bool [N, H, W], scores [N] and indices of prompts [N] in a result of the forward pass."""
    if task == "instance":
        instances = result["instances"]
        return instances.pred_masks, instances.scores, instances.pred_classes
    if task == "panoptic":
        segment_map, segments = result["panoptic_seg"]
        ids, labels = (torch.tensor([s[key] for s in segments], dtype=torch.long) for key in ("id", "category_id"))
        scores = torch.tensor([s["score"] for s in segments])
        return segment_map == ids.to(segment_map.device)[:, None, None], scores, labels
    if task == "referring":
        masks, scores = result["referring"]
        labels = masks.flatten(1).any(dim=1).nonzero()[:, 0]
        return masks[labels], scores[labels], labels
    labels = result["semantic"].unique()
    labels = labels[labels >= 0]
    return result["semantic"] == labels[:, None, None], result["best_scores"][labels], labels
