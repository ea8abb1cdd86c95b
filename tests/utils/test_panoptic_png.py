"""Ids of panoptic PNGs, against panopticapi."""

import numpy as np
import panopticapi.utils as official
import pytest

from openworldsam.utils.panoptic_png import id2rgb, rgb2id


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_ids_and_colours_are_panopticapis(dtype):
    ids = np.array([[0, 1, 255, 256], [65_535, 65_536, 1_000_003, 2**24 - 1]], dtype)
    colours = id2rgb(ids)
    assert colours[1, 2].tolist() == [67, 66, 15] and colours.dtype == np.uint8
    assert (colours == official.id2rgb(ids)).all()
    assert (rgb2id(colours) == ids).all() and (rgb2id(colours) == official.rgb2id(colours)).all()


def test_narrow_ids_are_their_own_colours():
    assert (id2rgb(np.full((2, 3), 7, np.uint8)) == [7, 0, 0]).all()
