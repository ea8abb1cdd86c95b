"""Drawings of predictions: masks, outlines, labels and a legend."""

from openworldsam.visualization.drawing import (
    at_drawn_size,
    contact_sheet,
    draw_clicks,
    draw_comparison,
    draw_masks,
    draw_prediction,
    pole_of_inaccessibility,
)
from openworldsam.visualization.legend import LabelledMasks

__all__ = [
    "LabelledMasks",
    "at_drawn_size",
    "contact_sheet",
    "draw_clicks",
    "draw_comparison",
    "draw_masks",
    "draw_prediction",
    "pole_of_inaccessibility",
]
