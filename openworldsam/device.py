"""The device that a config asks for, where this machine has it."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


def usable_device(name: str) -> str:
    """The configured device; where this machine has no GPU, what it has instead, with a warning.

    Raises:
        ValueError: no such device.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        logger.warning("no %s on this machine, running on %s", name, other)
        return other
    return checked_device(name)


def checked_device(name: str) -> str:
    """The device of that name.

    Raises:
        ValueError: this machine has none.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; cpu always can") from error
    return name
