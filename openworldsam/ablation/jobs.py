"""Jobs side by side, each in a process of its own whose console output goes to a file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from openworldsam.utils.launch import say


class Job(NamedTuple):
    """Work for a process.

    title: name in messages.
    console: file that what the process prints is appended to.
    work: picklable; a failure is an exception or an exit status.
    needs: file that another job makes before this one can start, if any.
    """

    title: str
    console: Path
    work: Callable[[], object]
    needs: Path | None = None


def run_jobs(jobs: Sequence[Job], workers: int, finished: Callable[[Job], None]) -> None:
    """Run jobs, at most `workers` at a time, and call `finished` after each.

    They share the threads of this process evenly. Several workers take the visible GPUs in turn, one GPU each; more
    workers than GPUs share them.

    Raises:
        ChildProcessError: a job failed. As after Ctrl-C or SIGTERM, no further job starts, and the others are ended.
    """
    context = multiprocessing.get_context("forkserver")
    # import once for all jobs
    context.set_forkserver_preload(["openworldsam.ablation.runs", "openworldsam.engine.train"])
    threads = max(1, torch.get_num_threads() // workers)
    gpus = _visible_gpus() if workers > 1 else []
    waiting = list(jobs)
    running: dict[int, tuple[Job, BaseProcess]] = {}
    try:
        while waiting or running:
            ready = [job for job in waiting if job.needs is None or job.needs.exists()]
            for slot, job in zip([n for n in range(workers) if n not in running], ready, strict=False):
                gpu = gpus[slot % len(gpus)] if gpus else None
                process: BaseProcess = context.Process(target=_work, args=(job, threads, gpu))
                process.start()
                running[slot] = job, process
                waiting.remove(job)
                say(f"{job.title}: started, output in {job.console}")
            assert running, f"nothing makes {waiting[0].needs}"
            connection.wait([process.sentinel for _, process in running.values()])
            for slot, (job, process) in list(running.items()):
                if process.exitcode is None:
                    continue
                if process.exitcode:
                    raise ChildProcessError(f"{job.title} failed: {_reason(job, process.exitcode)}")
                del running[slot]
                finished(job)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _visible_gpus() -> list[str]:
    """Return the names of this machine's GPUs in CUDA_VISIBLE_DEVICES; none if it has none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _work(job: Job, threads: int, gpu: str | None) -> None:
    """Do a job in its process, which ends with the main process, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the main process ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job.console.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = console = job.console.open("a", buffering=1, encoding="utf-8")
    for number in (1, 2):  # for processes of its own, and libraries
        os.dup2(console.fileno(), number)
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    job.work()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _reason(job: Job, status: int) -> str:
    """Return the last line that a failed job printed, which is its error, or the signal that killed it."""
    printed = job.console.read_text("utf-8", errors="replace") if job.console.exists() else ""
    lines = printed.split("\n") if status > 0 else []
    last = next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
    reason = last.removeprefix("error: ") if status > 0 else f"killed by signal {-status}"
    return f"{reason}. {job.console} has its output; the same command continues"
