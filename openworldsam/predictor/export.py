"""Convert a `Prediction` to COCO and to the classes of other libraries, each imported on first use.

    import supervision as sv

    detections = predictor("zebra.jpg", "zebra").to_supervision()
    sv.MaskAnnotator().annotate(image, detections)

The functions named `to_...` are methods of `Prediction`.

Shapes: N masks of P prompts in an image of H x W pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from openworldsam.data.records.rle import encode_mask

if TYPE_CHECKING:
    import fiftyone
    import supervision

    from openworldsam.predictor.prediction import Prediction

NUDGE = 1e-6
"""Pixels by which FiftyOne boxes are shifted: it rounds box ends down, and x / W + w / W is often just below
(x + w) / W."""


def coco_annotations(prediction: Prediction) -> list[dict[str, Any]]:
    """List the masks as COCO annotations; the prompts are the categories, numbered from 1.

    Each annotation also has `score`, `predicted_iou`, `match` if the model has a score head, and `isthing`; the caller
    adds `id` and `image_id`.
    """
    columns = (prediction.boxes, prediction.prompt_index, prediction.scores, prediction.is_thing)
    return [
        {
            "category_id": index + 1,
            "segmentation": encode_mask(mask),
            "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "score": score,
            **prediction.evidence(n),
            "isthing": thing,
        }
        for n, (mask, (x0, y0, x1, y1), index, score, thing) in enumerate(
            zip(prediction.masks, *(column.tolist() for column in columns), strict=True)
        )
    ]


def to_coco(
    prediction: Prediction, file_name: str | None = None, info: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make a COCO dataset of one image: the prompts are its categories, the masks its annotations (RLE).

    The image also has `not_found`, the best score of each prompt without a mask.

    Args:
        file_name: of the image; by default the name of the file that was read, "" without one.
        info: extends the dataset's "info", for example with `checkpoint.provenance`.
    """
    if file_name is None:
        file_name = Path(prediction.path or "").name
    height, width = prediction.label_map.shape
    size = {"file_name": file_name, "width": width, "height": height}
    score = {"rule": prediction.rule, "threshold": prediction.threshold}
    annotations = enumerate(coco_annotations(prediction), start=1)
    return {
        "info": {"task": prediction.task, "score": score, **(info or {})},
        "images": [{"id": 1, **size, "not_found": prediction.not_found}],
        "categories": [{"id": id_, "name": prompt} for id_, prompt in enumerate(prediction.prompts, start=1)],
        "annotations": [{"id": id_, "image_id": 1, **annotation} for id_, annotation in annotations],
    }


def to_detectron2(prediction: Prediction) -> Instances:
    """Convert to Detectron2 `Instances`: pred_masks bool [N, H, W], pred_boxes, scores [N], predicted_iou [N], match
    [N] (NaN without a score head), pred_classes [N] (prompt indices)."""
    return Instances(
        prediction.label_map.shape,
        pred_masks=torch.from_numpy(prediction.masks),
        pred_boxes=Boxes(torch.from_numpy(prediction.boxes)),
        scores=torch.from_numpy(prediction.scores),
        predicted_iou=torch.from_numpy(prediction.predicted_iou),
        match=torch.from_numpy(prediction.match),
        pred_classes=torch.from_numpy(prediction.prompt_index),
    )


def to_supervision(prediction: Prediction) -> supervision.Detections:
    """Convert to supervision `Detections`: xyxy [N, 4], mask bool [N, H, W], confidence [N], class_id [N] (prompt
    indices), and data["class_name"] (prompts), data["predicted_iou"] and data["match"] (NaN without a score head).

    Raises:
        ImportError: supervision is not installed.
    """
    return _optional("supervision").Detections(
        xyxy=prediction.boxes,
        mask=prediction.masks,
        confidence=prediction.scores,
        class_id=prediction.prompt_index,
        data={
            "class_name": np.array([prediction.prompts[i] for i in prediction.prompt_index], dtype=str),
            "predicted_iou": prediction.predicted_iou,
            "match": prediction.match,
        },
    )


def to_fiftyone(prediction: Prediction, path: str | Path | None = None, field: str = "predictions") -> fiftyone.Sample:
    """Make a FiftyOne sample that holds the masks as `Detections`.

    Each has the attributes predicted_iou and, if the model has a score head, match. Boxes are x, y, width, height as
    fractions of the image, and masks are cropped to their boxes
    (https://docs.voxel51.com/user_guide/using_datasets.html#instance-segmentations).

    Args:
        path: of the image; by default the file that was read.
        field: names the field of the masks.

    Raises:
        ImportError: fiftyone is not installed.
        ValueError: no path, and the image was not read from a file.
    """
    fo = _optional("fiftyone")
    if (path := path or prediction.path) is None:
        raise ValueError("the image was not read from a file: give its path")
    sample = fo.Sample(filepath=str(path))
    sample[field] = fiftyone_detections(prediction)
    return sample


def fiftyone_detections(prediction: Prediction) -> fiftyone.Detections:
    """Convert to the label of a FiftyOne sample; see `to_fiftyone`."""
    fo = _optional("fiftyone")
    height, width = prediction.label_map.shape
    detections = [
        fo.Detection(
            label=prediction.prompts[prediction.prompt_index[n]],
            bounding_box=[(x0 + NUDGE) / width, (y0 + NUDGE) / height, (x1 - x0) / width, (y1 - y0) / height],
            mask=prediction.masks[n, y0:y1, x0:x1],
            confidence=float(prediction.scores[n]),
            **prediction.evidence(n),
        )
        for n, (x0, y0, x1, y1) in enumerate(prediction.boxes.astype(int).tolist())
    ]
    return fo.Detections(detections=detections)


def _optional(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(f"{package} is not installed: pip install {package}") from error
