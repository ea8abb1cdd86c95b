"""Results of two devices side by side, and how often the host waited for them."""

from collections.abc import Mapping
from dataclasses import is_dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from openworldsam.speed.waits import WaitCounter


def waits(call):
    """A result, and how often the host waited; where it did is among the output of a test that fails."""
    with WaitCounter() as counter:
        result = call()
    print(len(counter.waits), "waits", *counter.waits, sep="\n  ")
    assert not [site for site in counter.uploads if not site.startswith("video/memory.py")]  # which are SAM2's own
    return result, len(counter.waits)


def values(result):
    """A result as nested lists and dicts of arrays."""
    if is_dataclass(result):
        result = vars(result)
    if isinstance(result, Instances):
        result = result.get_fields()
    if isinstance(result, Boxes):
        result = result.tensor
    if isinstance(result, torch.Tensor):
        return result.detach().cpu().numpy()
    if isinstance(result, Mapping):
        return {key: values(value) for key, value in result.items()}
    return [values(item) for item in result] if isinstance(result, (list, tuple)) else result


def assert_same(result, expected):
    """Not a digit differs."""
    np.testing.assert_equal(values(result), values(expected))
