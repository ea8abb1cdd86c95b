"""Time of the stages of a computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter

import torch

Timed = Callable[[str], AbstractContextManager[None]]
"""`with timed("decoder"):` surrounds a stage, which a `Stopwatch` times and `untimed` does not."""


class Stopwatch:
    """Times stages, each until the device has finished it; a stage that runs again adds up.

    times: milliseconds by stage, in the order in which they began.
    """

    def __init__(self, device: torch.device) -> None:
        self.times: dict[str, float] = {}
        self._wait = getattr(torch, device.type).synchronize

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._wait()
        start = perf_counter()
        yield
        self._wait()
        self.times[stage] = self.times.get(stage, 0.0) + 1000 * (perf_counter() - start)


def untimed(stage: str) -> AbstractContextManager[None]:
    """Surround a stage without waiting for the device."""
    return nullcontext()
