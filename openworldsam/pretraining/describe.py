"""Class-free descriptions of segments: place, colours and form. Both encoders learn to predict them.

Shapes: n segments of a scene, H = W scene size, S cells along a side.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import find_objects
from torch import Tensor

from openworldsam.data.shapes import Scene

RADII, HARMONICS = 8, 6
POINT, BOX, COLOUR, FORM = slice(0, 2), slice(2, 6), slice(6, 12), slice(12, 12 + RADII * HARMONICS)
"""Columns of a description: innermost point and box (fractions of the scene), mean and deviation of RGB, form."""
NUMBERS = 12 + RADII * HARMONICS
THING_WEIGHT = 4.0
"""Weight of a thing; there are fewer cells of things than of stuff, and they are harder."""


def describe_segments(scene: Scene) -> np.ndarray:
    """Describe the segments by id: float32 [n + 1, NUMBERS + 1].

    The last column is the weight of a segment: 0 for void (id 0), 1 for stuff, which has no form, THING_WEIGHT for
    things.
    """
    table = np.zeros((len(scene.segments) + 1, NUMBERS + 1), np.float32)
    size = len(scene.segment_map)
    boxes = find_objects(scene.segment_map, len(scene.segments))
    for segment in scene.segments:
        box = boxes[segment.id - 1]
        offset = np.array([box[1].start, box[0].start])
        mask = scene.segment_map[box] == segment.id
        pixels = scene.image[box][mask] / np.float32(255)
        table[segment.id, POINT] = (innermost(mask) + offset) / size
        table[segment.id, BOX] = (box_of(mask) + np.tile(offset, 2)) / size
        table[segment.id, COLOUR] = [*pixels.mean(axis=0), *pixels.std(axis=0)]
        table[segment.id, -1] = 1
        if segment.is_thing:
            table[segment.id, FORM] = form(mask).ravel()
            table[segment.id, -1] = THING_WEIGHT
    return table


def describe_cells(scene: Scene, stride: int) -> np.ndarray:
    """Describe the segment at the centre of each cell of `stride` pixels: float32 [NUMBERS + 1, S, S]."""
    return describe_segments(scene)[scene.segment_map[stride // 2 :: stride, stride // 2 :: stride]].transpose(2, 0, 1)


def innermost(mask: np.ndarray) -> np.ndarray:
    """Return (x, y) in pixels of the point of a mask, bool [H, W], that is farthest from its outside."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    return np.array([x + 0.5, y + 0.5], np.float32)


def box_of(mask: np.ndarray) -> np.ndarray:
    """Return (left, top, right, bottom) in pixels of a non-empty mask, bool [H, W]."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


def form(mask: np.ndarray) -> np.ndarray:
    """Describe a mask [H, W] around its centroid, invariant to rotation and scale: float32 [RADII, HARMONICS].

    Each row is a ring between the centroid and the farthest pixel: the share of the ring that the mask covers, then
    the magnitudes of the Fourier series of the coverage over the angle (period one turn, half a turn, ...).
    """
    ys, xs = np.nonzero(mask)
    centre = (float(xs.mean()), float(ys.mean()))
    farthest = float(np.hypot(xs - centre[0], ys - centre[1]).max()) + 0.5
    turns = 64
    flags = cv2.WARP_POLAR_LINEAR | cv2.WARP_FILL_OUTLIERS
    polar = cv2.warpPolar(mask.astype(np.float32), (2 * RADII, turns), centre, farthest, flags)
    magnitudes = np.abs(np.fft.rfft(polar, axis=0))[:HARMONICS].T / turns  # [2 * RADII, HARMONICS]
    return magnitudes.reshape(RADII, 2, HARMONICS).mean(axis=1).astype(np.float32)


def description_loss(told: Tensor, truth: Tensor) -> Tensor:
    """Weighted error of predicted descriptions [..., NUMBERS] against [..., NUMBERS + 1], except for their points."""
    weight = truth[..., -1]
    error = told[..., 2:] - truth[..., 2:-1]
    box, colour, shape = (error[..., part.start - 2 : part.stop - 2] for part in (BOX, COLOUR, FORM))
    near = 2 * box.abs().mean(dim=-1) + 2 * colour.abs().mean(dim=-1)
    # squared: most numbers of a form are small, and absolute errors would lead to their uninformative median
    alike = 50 * (weight > 1) * shape.square().mean(dim=-1)
    return (weight * (near + alike)).sum() / weight.sum().clamp(min=1)
