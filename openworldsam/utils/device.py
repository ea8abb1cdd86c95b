"""Device, number formats, and memory settings for the CPU."""

from __future__ import annotations

import ctypes
import logging
import sys

import torch
from detectron2.utils import comm
from torch import Tensor

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by their names in configs and on command lines."""


def best_device() -> str:
    """Return CUDA where this machine has it, else MPS, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(name: str) -> str:
    """Return the configured device; if it is CUDA and this machine has none, the best one, with a warning.

    Raises:
        ValueError: no such device.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        other = best_device()
        if comm.is_main_process():
            logger.warning("no %s on this machine, running on %s", name, other)
        return other
    return checked_device(name)


def checked_device(name: str) -> str:
    """Return the name of a device if this machine has it.

    Raises:
        ValueError: this machine has none.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; cpu always can") from error
    return name


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; the host goes on at once, except on MPS, which does not keep the tensor alive."""
    return tensor.to(device, non_blocking=device.type != "mps")


def keep_freed_memory() -> None:
    """Let glibc keep up to 2 GiB of freed memory instead of returning every large block to the system.

    Otherwise each operation that makes an activation of 30 MiB has the system zero its pages again, which takes several
    times as long as an addition (docs/performance.md). Call it after loading the weights, so that memory freed until
    then is returned.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        mmap_threshold, trim_threshold = -3, -1  # constants of malloc.h
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
