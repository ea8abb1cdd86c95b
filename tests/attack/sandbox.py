"""Runs functions in forked processes with limits, so that nothing they do reaches the tests."""

import contextlib
import logging
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

UNHANDLED = 70
"""Exit status of a function that raised."""
MEMORY = 2 * 2**30


class Task(NamedTuple):
    """A function to call in a folder, where what it prints is kept until the end."""

    folder: Path
    function: object
    args: tuple = ()


class Ended(NamedTuple):
    """The end of a task: its exit status, or minus the signal that killed its process; seconds of computing; texts."""

    status: int
    seconds: float
    out: str
    err: str


def run_tasks(tasks, seconds=30, memory=MEMORY):
    """Run tasks one after the other, forking again only where one kills its process; returns an `Ended` for each.

    Each may take some seconds, and all together may add `memory` bytes to what this process has.
    """
    ended = []
    while len(ended) < len(tasks):
        ended += _run_in_a_fork(tasks[len(ended) :], seconds, memory)
    return ended


def run_task(folder, function, *args, **limits):
    """`run_tasks` with a single one."""
    return run_tasks([Task(folder, function, args)], **limits)[0]


def _run_in_a_fork(tasks, seconds, memory):
    """Run tasks up to the first one that ends its process."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        with os.fdopen(writing, "wb") as answers:
            _limit_memory(memory)
            for task in tasks:
                pickle.dump(_run(task, seconds), answers)
                answers.flush()
        os._exit(0)
    os.close(writing)
    ended = []
    with os.fdopen(reading, "rb") as answers, contextlib.suppress(EOFError):
        while True:
            ended.append(Ended(*pickle.load(answers)))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if len(ended) < len(tasks):
        ended.append(Ended(status, 0.0, *_written(tasks[len(ended)])))
    return ended


def _limit_memory(memory):
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run(task, seconds):
    """Call the function of a task as a fresh process would; returns the content of `Ended`."""
    begun = time.process_time()
    os.chdir(task.folder)
    for name in (None, *logging.root.manager.loggerDict):  # handlers of earlier ones write elsewhere
        logging.getLogger(name).handlers.clear()
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
        setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        task.function(*task.args)
        status = 0
    except SystemExit as exited:
        status = exited.code if isinstance(exited.code, int) else int(exited.code is not None)
    except BaseException:
        traceback.print_exc()
        status = UNHANDLED
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.flush(), sys.stderr.flush()
    return status, time.process_time() - begun, *_written(task)


def _written(task):
    """Return and remove the texts that a task has written."""
    files = [task.folder / name for name in (".stdout", ".stderr")]
    texts = [file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in files]
    for file in files:
        file.unlink(missing_ok=True)
    return texts
