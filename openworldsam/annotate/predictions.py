"""Predictions of many pictures at once.

Shapes: P prompts, H, W size of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from openworldsam.annotate.prompts import Prompts
from openworldsam.data.preprocessing import to_tensor
from openworldsam.modeling import OpenWorldSAM
from openworldsam.predictor.prediction import Prediction


def predict_batch(
    model: OpenWorldSAM, images: Sequence[np.ndarray], prompts: Prompts, task: str, chunk: int
) -> Iterator[Prediction]:
    """What `OpenWorldSAMPredictor.predict` says of each picture, from one pass over all of them.

    Args:
        model: in eval mode.
        images: uint8 [H, W, 3] each.
        prompts: what all of them are asked.
        task: "semantic", "instance", "panoptic" or "referring".
        chunk: prompts that are decoded together, see `inference.prompt_chunk`.
    """
    texts, is_thing = prompts
    # stuff is told apart by panoptic segmentation alone, as the predictor does
    asked = {"prompts": list(texts), "is_thing": list(is_thing) if task == "panoptic" else [True] * len(texts)}
    batch = [
        {"image": to_tensor(image), "height": image.shape[0], "width": image.shape[1], **asked} for image in images
    ]
    threshold = model.inference.threshold_of(task)
    for answer in model.answer(batch, (task,), prompt_chunk=chunk):
        best_score = float(answer["best_scores"].max())
        yield Prediction.of(
            answer[task].found(), task, texts, is_thing=is_thing, threshold=threshold, best_score=best_score
        )
