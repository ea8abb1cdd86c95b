"""Time, memory, operations and waits of calls that take turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from openworldsam.speed.machine import give_back_freed_memory, memory_field, seconds
from openworldsam.speed.waits import WaitCounter

Call = Callable[[], Any]
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
RESET_PEAK = "5"
"""See proc(5), clear_refs."""


aten = torch.ops.aten
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}
"""Operation counts by shape that FlopCounterMode lacks."""


@dataclass
class Cost:
    """Cost of a call.

    seconds: of each repetition.
    peak_bytes: most memory beyond that in use before the call; None where the system does not tell.
    error: why it could not be measured; empty if it could.
    """

    seconds: list[float]
    peak_bytes: int | None = None
    error: str = ""


def operations_and_waits(call: Call, waits: WaitCounter) -> tuple[int, int]:
    """Count the operations (a multiply-add is two) of a call's matrix products and convolutions, forward and backward,
    and its waits; `waits` keeps them, and its CPU tensors "on the device".
    """
    fast_path, before = torch.backends.mha.get_fastpath_enabled(), len(waits.waits)
    torch.backends.mha.set_fastpath_enabled(False)  # a single operation, whose products cannot be seen
    try:
        with waits, FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as operations:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return operations.get_total_flops(), len(waits.waits) - before


def measure(calls: Mapping[str, Call], device: torch.device, *, warmup: int, repeats: int) -> dict[str, Cost]:
    """Measure the cost of calls by name; they take turns, in alternating order, so that a changing load meets all.

    One that runs out of memory is not tried again.

    Args:
        calls, device: computations by name, and where they run.
        warmup: rounds before those that are timed, at least 1; memory is measured in the last.
        repeats: rounds that are timed.
    """
    costs = {name: Cost([]) for name in calls}
    for turn in range(warmup + repeats):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            cost = costs[name]
            if cost.error:
                continue
            try:
                if turn < warmup - 1:
                    calls[name]()
                elif turn < warmup:
                    cost.peak_bytes = peak_memory(calls[name], device)
                else:
                    cost.seconds.append(seconds(calls[name], device))
            except OUT_OF_MEMORY as error:
                cost.error = first_sentence(error)
    return costs


def first_sentence(error: Exception) -> str:
    """First sentence of a message; CUDA's are paragraphs."""
    return str(error).split(". ")[0]


def peak_memory(call: Call, device: torch.device) -> int | None:
    """Most bytes that a call takes beyond those in use before it; None where the system does not tell.

    On a CPU: the process's resident memory, whose high-water mark Linux keeps.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if device.type != "cpu" or not reset.exists():
        call()
        return None
    give_back_freed_memory()  # its reuse would not show
    reset.write_text(RESET_PEAK)
    before = memory_field("/proc/self/status", "VmRSS") or 0
    call()
    return max(0, (memory_field("/proc/self/status", "VmHWM") or 0) - before)
