"""Worker processes: a DataLoader's, and a pool that works through a list of images."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def image_loader(dataset: Any, *, num_workers: int, **options: Any) -> DataLoader[Any]:
    """Return a DataLoader whose batches are lists, whose workers do not outlive this process, and which leaves the
    default random generator to the training that it may be part of; options are further arguments of it."""
    setup: dict[str, Any] = {"collate_fn": list, "worker_init_fn": _end_with_parent, "generator": torch.Generator()}
    return DataLoader(dataset, num_workers=num_workers, **setup | options)


def _end_with_parent(worker: int) -> None:
    """Serve as `worker_init_fn` of a DataLoader: exit when the parent dies (Linux), leave Ctrl-C to the parent.

    Otherwise a worker that has just read a large array waits for ever to send it to a killed parent, and the DataLoader
    waits five seconds for each worker that Ctrl-C has ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def for_each(work: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, title: str) -> Iterator[_Result]:
    """Apply the work to all jobs, one per image, under a progress bar; yields the results in order.

    More than one worker is a pool of processes, to which the work must be picklable.

    Raises:
        OSError: a process was killed.
    """
    bar = {"desc": title, "total": len(jobs), "unit": "image", "disable": None}  # None: only on a terminal
    if workers <= 1:
        yield from tqdm(map(work, jobs), **bar)
        return
    # Ctrl-C reaches the whole group: this process stops the others, which would end in a traceback each
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield from tqdm(pool.map(work, jobs, chunksize=8), **bar)
    except BrokenProcessPool as error:
        raise OSError("a worker process was killed, perhaps for want of memory; try fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)
