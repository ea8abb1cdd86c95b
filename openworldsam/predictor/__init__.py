"""Masks from an image and texts, for use in other programs."""

from openworldsam.predictor.export import coco_annotations, coco_dataset, to_detectron2, to_fiftyone, to_supervision
from openworldsam.predictor.prediction import Prediction
from openworldsam.predictor.predictor import OpenWorldSAMPredictor

__all__ = [
    "OpenWorldSAMPredictor",
    "Prediction",
    "coco_annotations",
    "coco_dataset",
    "to_detectron2",
    "to_fiftyone",
    "to_supervision",
]
