"""Reading processes."""

from __future__ import annotations

import ctypes
import signal
import sys


def end_with_parent(worker: int) -> None:
    """To be given to a DataLoader as worker_init_fn: on Linux its reading process ends when the main process does.

    Else one that has just read a large array would wait for ever to hand it to a process that was killed.

    Args:
        worker: its number, which does not matter.
    """
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
