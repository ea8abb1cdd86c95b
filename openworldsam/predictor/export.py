"""A `Prediction` in the forms of other libraries, each imported when it is asked for.

    import supervision as sv
    detections = to_supervision(predictor.predict(["zebra"]))
    sv.MaskAnnotator().annotate(image, detections)

Shapes: N masks of P prompts in an image of H x W pixels.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from openworldsam.data.rle import encode_mask
from openworldsam.predictor.prediction import Prediction

if TYPE_CHECKING:
    import fiftyone
    import supervision

NUDGE = 1e-6
"""Pixels that boxes are moved by for FiftyOne, which cuts their ends down to whole pixels and scales masks into them:
x / W + w / W is often a bit less than (x + w) / W."""


def coco_annotations(prediction: Prediction) -> list[dict[str, Any]]:
    """The masks as annotations of a COCO dataset whose categories are the prompts, numbered from 1.

    Not yet with ids, of themselves and of their image. Beside COCO's keys each has its score and isthing.
    """
    annotations = []
    for mask, box, index, score, thing in zip(
        prediction.masks,
        prediction.boxes.tolist(),
        prediction.prompt_index.tolist(),
        prediction.scores.tolist(),
        prediction.is_thing.tolist(),
        strict=True,
    ):
        x0, y0, x1, y1 = box
        annotations.append(
            {
                "category_id": index + 1,
                "segmentation": encode_mask(mask),
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "score": score,
                "isthing": thing,
            }
        )
    return annotations


def to_detectron2(prediction: Prediction) -> Instances:
    """Detectron2's `Instances` with pred_masks bool [N, H, W], pred_boxes, scores [N] and pred_classes [N], which are
    indices of prompts."""
    return Instances(
        prediction.label_map.shape,
        pred_masks=torch.from_numpy(prediction.masks),
        pred_boxes=Boxes(torch.from_numpy(prediction.boxes)),
        scores=torch.from_numpy(prediction.scores),
        pred_classes=torch.from_numpy(prediction.prompt_index),
    )


def to_supervision(prediction: Prediction) -> supervision.Detections:
    """supervision's `Detections` with xyxy [N, 4], mask bool [N, H, W], confidence [N], class_id [N], indices of
    prompts, and data["class_name"], the prompts themselves.

    Raises:
        ImportError: supervision is not installed.
    """
    return _optional("supervision").Detections(
        xyxy=prediction.boxes,
        mask=prediction.masks,
        confidence=prediction.scores,
        class_id=prediction.prompt_index,
        data={"class_name": np.array([prediction.prompts[i] for i in prediction.prompt_index], dtype=str)},
    )


def to_fiftyone(prediction: Prediction, path: str | Path, field: str = "predictions") -> fiftyone.Sample:
    """A FiftyOne sample of an image whose field holds the masks as `Detections`.

    As FiftyOne has it, boxes are x, y, width, height in fractions of the image, and masks are cut to them
    (https://docs.voxel51.com/user_guide/using_datasets.html#instance-segmentations).

    Args:
        path: of the image.
        field: its name in the sample.

    Raises:
        ImportError: fiftyone is not installed.
    """
    fo = _optional("fiftyone")
    height, width = prediction.label_map.shape
    detections = []
    for n, (x0, y0, x1, y1) in enumerate(prediction.boxes.astype(int).tolist()):
        detections.append(
            fo.Detection(
                label=prediction.prompts[prediction.prompt_index[n]],
                bounding_box=[(x0 + NUDGE) / width, (y0 + NUDGE) / height, (x1 - x0) / width, (y1 - y0) / height],
                mask=prediction.masks[n, y0:y1, x0:x1],
                confidence=float(prediction.scores[n]),
            )
        )
    sample = fo.Sample(filepath=str(path))
    sample[field] = fo.Detections(detections=detections)
    return sample


def _optional(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(f"{package} is not installed: pip install {package}") from error
