"""The machine: description, memory and peak rates."""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from openworldsam.utils.device import DTYPES
from openworldsam.utils.versions import versions

COPY_BYTES = 2**28


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and date of a run."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
            "device": device.type,
            "gpu": gpu and gpu.name,
            "gpu_memory_bytes": gpu and gpu.total_memory,
        },
        "versions": versions(),
    }


def _field(path: str, name: str) -> str:
    """First value of a name in a file of "name: value" lines; empty without any."""
    if not Path(path).exists():
        return ""
    lines = (line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
    return next((value.strip() for key, value in lines if key.strip() == name), "")


def memory_field(path: str, name: str) -> int | None:
    """Size in bytes from a file in /proc; None if there is no such file."""
    found = _field(path, name)
    return int(found.split()[0]) * 1024 if found else None


def available_memory(device: torch.device) -> int:
    """Free bytes on the device; all its bytes where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    give_back_freed_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory_field("/proc/meminfo", "MemAvailable") or total


def give_back_freed_memory() -> None:
    """Return memory that this process freed but kept to the system (Linux); see `device.keep_freed_memory`."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def peaks(device: torch.device, precisions: Sequence[str]) -> dict[str, float]:
    """Measure operations per second of a square matrix product, by precision, and bytes per second (read and written)
    of a copy; the best of five tries."""

    def fastest(call: Callable[[], Any]) -> float:
        return min(seconds(call, device) for _ in range(6))  # the first try warms up

    side, found = 8192 if device.type == "cuda" else 2048, {}
    for precision in precisions:
        a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
        found[precision] = 2 * side**3 / fastest(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {**found, "copy": 2 * COPY_BYTES / fastest(lambda: target.copy_(source))}


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall time of a call until the device has finished."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start
