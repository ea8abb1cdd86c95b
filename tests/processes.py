"""Fresh processes for tests, forked from one that has imported everything.

Starting Python with this package takes five seconds of computing, and as many for each process that it spawns; a fork
takes none. One that is killed takes nothing with it.
"""

import contextlib
import functools
import importlib
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from openworldsam.utils.launch import launch

ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of a process whose sums do not depend on the machine."""
TIME_LIMIT = 300
"""Seconds after which a process ends by itself: the ones of a training may wait for each other for ever."""


def is_running(pid):
    """Whether a process exists that is no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


class Ended(NamedTuple):
    """A process that is over: exit status, or minus the signal; what its function returned; what it wrote."""

    status: int
    value: Any
    stdout: str
    stderr: str


class Started:
    """Processes that call a function; `pids` and the files that they write to are by rank."""

    def __init__(self, ask, pids, folder):
        self._ask, self.pids, self.folder = ask, pids, folder

    def send(self, number):
        """Send a signal to the first one."""
        os.kill(self.pids[0], number)

    def ended(self):
        """Wait for the end of all; returns a list of `Ended`."""
        return [
            Ended(
                status,
                torch.load(value) if (value := self.folder / f"{rank}.pth").exists() else None,
                (self.folder / f"{rank}.out").read_text(),
                (self.folder / f"{rank}.err").read_text(),
            )
            for rank, status in enumerate(self._ask("wait", self.pids))
        ]


class Processes:
    """Calls functions of test modules in fresh processes, with the environment and working directory of the caller.

    Those that they start, by launch or multiprocessing, are forked, too.
    """

    def __init__(self, folder):
        self.folder, self.runs = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, **ALONE, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def _ask(self, *request):
        pickle.dump(request, self.server.stdin)
        self.server.stdin.flush()
        return pickle.load(self.server.stdout)

    def start(self, function, *args, processes=1):
        """Call a function on every process of a training; returns at once."""
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        if isinstance(function, partial):  # a command
            function, args = function.func, (*function.args, *args)
        call = function.__module__, function.__name__, args
        pids = self._ask("start", call, processes, folder, sys.path, {**os.environ, **ALONE}, os.getcwd())
        return Started(self._ask, pids, folder)

    def __call__(self, function, *args, processes=1):
        """Call a function on every process of a training; returns a list of `Ended`, by rank."""
        return self.start(function, *args, processes=processes).ended()

    def values(self, function, *args, processes=1):
        """What the function returned on every process; they must all have ended well."""
        ended = self(function, *args, processes=processes)
        assert [end.status for end in ended] == [0] * processes, "\n".join(end.stderr for end in ended)
        return [end.value for end in ended]

    def script(self, path, *words):
        """Run a script as `python path words`; returns its `Ended`."""
        return self(run_script, str(path), *map(str, words))[0]


def run_script(path, *words):
    sys.argv = [path, *words]
    runpy.run_path(path, run_name="__main__")


@contextlib.contextmanager
def forked_processes(folder):
    """`Processes` that end with the block."""
    processes = Processes(folder)
    try:
        yield processes
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(processes.server.pid, signal.SIGKILL)
        processes.server.communicate()


def serve():
    """Fork for every request to start, and answer with pids; answer a request to wait with exit statuses."""
    for name in ("openworldsam.engine.train", "torch.utils.tensorboard"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # these two are for requests and answers alone
    os.dup2(2, 1)
    with contextlib.suppress(EOFError):
        while True:
            kind, *request = pickle.load(requests)
            answer = _start(*request) if kind == "start" else _wait(*request)
            pickle.dump(answer, answers)
            answers.flush()


def _start(call, count, folder, path, environment, cwd):
    module, name, args = call
    sys.path[:] = path
    function = getattr(importlib.import_module(module), name)  # here, so that later forks have it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(count):
        outputs = [os.open(folder / f"{rank}.{kind}", os.O_WRONLY | os.O_CREAT) for kind in ("out", "err")]
        pids.append(os.fork())
        if not pids[-1]:
            os.dup2(outputs[0], 1)
            os.dup2(outputs[1], 2)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            _child(functools.partial(function, *args), (rank, count, port), folder)
        for file in outputs:
            os.close(file)
    return pids


def _wait(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _child(function, place, folder):
    """A forked process, from here to its end; `place` is rank, number of processes, and the port they meet at."""
    signal.alarm(TIME_LIMIT)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    rank, processes, port = place
    if processes > 1:  # as torchrun does
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({key: str(value) for key, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    status = 1
    try:
        torch.save(launch(function), folder / f"{rank}.pth")
        status = 0
    except SystemExit as exited:
        status = exited.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
