"""The device that a config asks for, where this machine has it."""

from __future__ import annotations

import ctypes
import logging
import sys

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


def keep_freed_memory() -> None:
    """Have glibc keep up to 2 GiB of freed memory instead of giving every large block back to the system.

    To be called once the weights are loaded: what was freed until then is given back.

    An activation of 30 MiB would else be paged in anew, zeroed, by each operation that makes one: several times what
    an addition costs (docs/performance.md).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        mmap_threshold, trim_threshold = -3, -1  # their numbers in malloc.h
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
