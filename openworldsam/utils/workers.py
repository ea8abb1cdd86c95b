"""Reading processes."""

from __future__ import annotations

import ctypes
import signal
import sys


def end_with_parent(worker: int) -> None:
    """To be given to a DataLoader as worker_init_fn: its reading process ends when the main process does, not before.

    Else one that has just read a large array would wait for ever to hand it to a process that was killed (on Linux
    alone it does not); and of those that Ctrl-C ends the DataLoader waits for some, five seconds for each.

    Args:
        worker: its number, which does not matter.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
