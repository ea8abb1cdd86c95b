"""Descriptions of segments: hand-calculated cases, invariance to rotation and scale, and the loss."""

import cv2
import numpy as np
import pytest
import torch

from openworldsam.data.shapes import render
from openworldsam.data.shapes.drawing import Thing, coverage
from openworldsam.pretraining.describe import (
    BOX,
    COLOUR,
    FORM,
    NUMBERS,
    POINT,
    THING_WEIGHT,
    box_of,
    describe_cells,
    describe_segments,
    description_loss,
    form,
    innermost,
)


def drawn(shape, angle=0.0, diameter=80.0):
    box, alpha = coverage(Thing(shape, "red", 64.0, 64.0, diameter, angle), 128)
    mask = np.zeros((128, 128), bool)
    mask[box] = alpha > 0.5
    return mask


def test_cells_describe_the_segment_at_their_centre(world):
    scene = render(world, 3, 0, "all")
    cells = describe_cells(scene, 16)
    assert cells.shape == (NUMBERS + 1, 8, 8)
    for row, column in np.ndindex(8, 8):
        id_ = scene.segment_map[16 * row + 8, 16 * column + 8]
        cell = cells[:, row, column]
        if id_ == 0:
            assert not cell.any()
            continue
        mask = scene.segment_map == id_
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(cell[BOX] * 128, box, rtol=1e-6)
        x, y = cell[POINT] * 128
        assert mask[int(y), int(x)]
        np.testing.assert_allclose(cell[COLOUR][:3], scene.image[mask].mean(axis=0) / 255, rtol=1e-4)
        assert cell[-1] == (THING_WEIGHT if scene.segments[id_ - 1].is_thing else 1)


def test_the_innermost_point_and_the_box_of_a_bar():
    mask = np.zeros((20, 30), bool)
    mask[5:10, 3:28] = True
    x, y = innermost(mask)
    assert y == 7.5 and 5 < x < 26
    assert box_of(mask).tolist() == [3, 5, 28, 10]


def test_form_of_disk_and_ring():
    disk, ring = form(drawn("circle")), form(drawn("ring"))
    np.testing.assert_allclose(disk[:-1, 0], 1, atol=0.03)
    np.testing.assert_allclose(disk[:-1, 1:], 0, atol=0.03)
    np.testing.assert_allclose(ring[:3, 0], 0, atol=0.03)
    np.testing.assert_allclose(ring[6, 0], 1, atol=0.03)


def test_form_of_a_cross():
    cross = form(drawn("cross"))  # four arms: only harmonic 4 beside the mean
    assert cross[6, 4] > 0.15 and np.abs(cross[6, [1, 2, 3, 5]]).max() < 0.03


def test_form_of_two_opposite_quarters():
    """Every ring is half covered: share 1/2, second harmonic 1/pi, no odd harmonics."""
    ys, xs = np.mgrid[:129, :129] - 64
    disk = np.hypot(xs, ys) < 60
    quarters = disk & ((np.arctan2(ys, xs) % np.pi) < np.pi / 2)  # opposite, so the centroid stays
    found = form(quarters)
    np.testing.assert_allclose(found[2:7, 0], 0.5, atol=0.03)
    np.testing.assert_allclose(found[2:7, 2], 1 / np.pi, atol=0.03)
    np.testing.assert_allclose(found[2:7, [1, 3, 5]], 0, atol=0.03)


@pytest.mark.parametrize("shape", ["triangle", "star", "crescent", "hourglass", "heart", "arrow"])
def test_form_is_invariant_to_rotation_and_scale(shape):
    one = form(drawn(shape))
    np.testing.assert_allclose(form(drawn(shape, 0.7)), one, atol=0.09)
    np.testing.assert_allclose(form(drawn(shape, 2.1, 50.0)), one, atol=0.09)
    others = [form(drawn(other)) for other in ("circle", "ring", "cross")]
    assert min(np.abs(other - one).max() for other in others) > 0.15


def test_description_of_a_one_pixel_mask():
    mask = np.zeros((16, 16), bool)
    mask[3, 4] = True
    assert innermost(mask).tolist() == [4.5, 3.5] and np.isfinite(form(mask)).all()


def test_description_loss(world):
    """It is 0 for the truth, ignores the form of stuff, and weights the errors of a thing."""
    truth = torch.from_numpy(describe_segments(render(world, 3, 0, "all")))
    told = truth[:, :-1].clone()
    assert description_loss(told, truth) == 0
    stuff, thing = int((truth[:, -1] == 1).nonzero()[0]), int((truth[:, -1] > 1).nonzero()[0])
    told[stuff, FORM] += 1
    assert description_loss(told, truth) == 0
    told[thing, BOX] += 0.1
    total = truth[:, -1].sum()
    torch.testing.assert_close(description_loss(told, truth), 2 * 0.1 * truth[thing, -1] / total)
    told[thing, FORM] += 0.1
    torch.testing.assert_close(description_loss(told, truth), (2 * 0.1 + 50 * 0.1**2) * truth[thing, -1] / total)


def test_form_of_a_rotated_mask():
    mask = drawn("arrow")
    turned = cv2.rotate(mask.astype(np.uint8), cv2.ROTATE_90_CLOCKWISE) > 0
    np.testing.assert_allclose(form(turned), form(mask), atol=0.02)
