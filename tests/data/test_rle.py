"""Masks that no machine should decode."""

import numpy as np
import pytest

from openworldsam.data.records.rle import decode_mask, encode_mask, to_rle, usable_masks

SIDE = 65_535


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]},
        {"size": [SIDE, SIDE], "counts": "0"},
        [[0, 0, 9, 0, 9, 9]],
    ],
)
def test_a_mask_is_refused_by_its_area(segmentation):
    for read in (to_rle, decode_mask):
        with pytest.raises(ValueError, match=r"a mask has 65535 x 65535 pixels; the limit is 64,000,000"):
            read(segmentation, (SIDE, SIDE))
    masks, (problem,) = usable_masks([{"id": 7, "segmentation": segmentation}], (SIDE, SIDE))
    assert masks == [None] and problem.startswith("object 7: a mask has 65535 x 65535 pixels")


MASK = np.array([[0, 1, 0], [1, 0, 0]], bool)


@pytest.mark.parametrize("counts", [[1.0, 2.0, 3.0], encode_mask(MASK)["counts"]])
def test_whole_numbers_may_be_written_as_floats(counts):
    assert np.array_equal(decode_mask({"size": [2.0, 3.0], "counts": counts}, (2, 3)), MASK)
    with pytest.raises(ValueError, match="runs of a mask must be whole numbers"):
        decode_mask({"size": [2, 3], "counts": [1.5, 1.5, 3]}, (2, 3))
