"""Pictures of predictions: masks, outlines, labels and a legend."""

from openworldsam.visualization.drawing import (
    Drawing,
    Picture,
    PredictionLike,
    at_drawn_size,
    contact_sheet,
    draw_masks,
    draw_prediction,
    pole_of_inaccessibility,
)

__all__ = [
    "Drawing",
    "Picture",
    "PredictionLike",
    "at_drawn_size",
    "contact_sheet",
    "draw_masks",
    "draw_prediction",
    "pole_of_inaccessibility",
]
