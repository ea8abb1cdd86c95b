"""Drawings of predictions: masks, outlines, labels and a legend."""

from openworldsam.visualization.drawing import (
    LabelledMasks,
    PredictionLike,
    RGBImage,
    at_drawn_size,
    contact_sheet,
    draw_masks,
    draw_prediction,
    pole_of_inaccessibility,
)

__all__ = [
    "LabelledMasks",
    "PredictionLike",
    "RGBImage",
    "at_drawn_size",
    "contact_sheet",
    "draw_masks",
    "draw_prediction",
    "pole_of_inaccessibility",
]
