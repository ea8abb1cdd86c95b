"""Masks from an image and texts, for use in other programs."""

from openworldsam.predictor.export import coco_annotations, to_coco, to_detectron2, to_fiftyone, to_supervision
from openworldsam.predictor.prediction import Prediction, Segment
from openworldsam.predictor.predictor import OpenWorldSAMPredictor

__all__ = [
    "OpenWorldSAMPredictor",
    "Prediction",
    "Segment",
    "coco_annotations",
    "to_coco",
    "to_detectron2",
    "to_fiftyone",
    "to_supervision",
]
