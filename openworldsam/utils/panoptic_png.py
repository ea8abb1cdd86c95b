"""The colours of COCO's panoptic PNGs: a segment's id is R + 256 G + 65536 B."""

import numpy as np


def rgb2id(colours: np.ndarray) -> np.ndarray:
    """The ids int32 [H, W] of a PNG uint8 [H, W, 3]."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """The PNG uint8 [H, W, 3] of ids [H, W], which are below 2^24."""
    ids = ids.astype(np.uint32)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
