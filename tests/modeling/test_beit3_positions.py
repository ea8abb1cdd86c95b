"""BEiT-3's vision positions at another image size."""

import pytest
import torch

from openworldsam.modeling.prompt_encoders.beit3 import resize_positions


def test_positions_stay_when_the_sizes_are_equal():
    table = torch.randn(3 + 14 * 14, 5)
    assert torch.equal(resize_positions(table, len(table)), table)


@pytest.mark.parametrize("side", [1, 3, 8, 24])
def test_resized_positions_keep_the_first_three_and_a_constant_grid(side):
    table = torch.randn(3 + 7 * 7, 5)
    table[3:] = torch.arange(5.0)
    resized = resize_positions(table, 3 + side * side)
    assert resized.shape == (3 + side * side, 5)
    assert torch.equal(resized[:3], table[:3])
    torch.testing.assert_close(resized[3:], torch.arange(5.0).expand(side * side, 5), atol=1e-5, rtol=0)


def test_resized_positions_keep_rows_and_columns_apart():
    # channel 0 grows with the patch's row, channel 1 with its column
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([row.flatten(), column.flatten()], dim=1)
    resized = resize_positions(torch.cat([torch.zeros(3, 2), grid]), 3 + 16 * 16)[3:].view(16, 16, 2)
    # away from the borders it follows the slope, but for the ripple of the cubic (0.047 at a quarter step)
    inner = slice(4, 12)
    expected = (torch.arange(16)[inner] + 0.5) / 2 - 0.5
    torch.testing.assert_close(resized[inner, inner, 0], expected[:, None].expand(8, 8), atol=0.05, rtol=0)
    torch.testing.assert_close(resized[inner, inner, 1], expected[None, :].expand(8, 8), atol=0.05, rtol=0)


def test_positions_are_resized_bicubically():
    # 3 patches a side to 1: the centre of the middle patch is the centre of the picture
    table = torch.randn(3 + 9, 4)
    torch.testing.assert_close(resize_positions(table, 4)[3], table[3 + 4])
    # 4 a side to 2: each new centre lies halfway between two old ones; the cubic's weights there (A = -0.75)
    weights = torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375])
    table = torch.randn(3 + 16, 4)
    grid = table[3:].view(4, 4, 4)
    taps = [[0, 0, 1, 2], [1, 2, 3, 3]]  # the border repeats
    expected = [torch.einsum("i,j,ijc->c", weights, weights, grid[r][:, c]) for r in taps for c in taps]
    torch.testing.assert_close(resize_positions(table, 3 + 4)[3:], torch.stack(expected))
