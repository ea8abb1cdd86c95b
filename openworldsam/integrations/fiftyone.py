"""FiftyOne: apply the predictor to a dataset.

    from openworldsam import OpenWorldSAMPredictor
    from openworldsam.integrations.fiftyone import FiftyOneModel

    model = FiftyOneModel(OpenWorldSAMPredictor("released"), ["zebra", "grass"])
    dataset.apply_model(model, label_field="openworldsam", batch_size=4)

https://docs.voxel51.com/user_guide/model_zoo/design.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fiftyone
import numpy as np
from fiftyone.core.models import Model

from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.predictor.export import fiftyone_detections


class FiftyOneModel(Model):
    """Finds what prompts name in each sample's image; the labels are `Detections` with masks.

    Args:
        prompts, task, options: of `OpenWorldSAMPredictor.predict_batch`, asked of every image.
    """

    media_type = "image"
    ragged_batches = False
    """Images of a batch may differ in size."""
    transforms = None
    preprocess = False
    config = None

    def __init__(
        self, predictor: OpenWorldSAMPredictor, prompts: str | Sequence[str], task: str = "instance", **options: Any
    ) -> None:
        self.predictor, self.question = predictor, {"prompts": prompts, "task": task, **options}
        predictor.predict_batch([], **self.question)  # refuses what is wrong before the first image

    def predict(self, arg: np.ndarray) -> fiftyone.Detections:
        """Segment one image, uint8 [H, W, 3] or [H, W]."""
        return self.predict_all([arg])[0]

    def predict_all(self, args: Sequence[np.ndarray]) -> list[fiftyone.Detections]:
        """Segment a batch of images, which pass the encoders together."""
        images = list(args)
        results = self.predictor.predict_batch(images, **self.question, batch_size=max(1, len(images)))
        return [fiftyone_detections(result) for result in results]
