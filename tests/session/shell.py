"""Runs the code blocks of a page in a folder: bash as it is pasted, with other programs in place of some.

`openworldsam` and `python` on the PATH send their words to the test, which runs them: forked from a process that has
imported everything, or, if OPENWORLDSAM_BIN names a folder of executables, as these. Programs of `NOT_RUN` do nothing.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from importlib import import_module
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import NamedTuple

from processes import ALONE

from openworldsam import cli

for module in ("openworldsam.app.page", *(command.target.partition(":")[0] for command in cli.COMMANDS.values())):
    import_module(module)  # here, so that forks have it

INSTALLED = os.environ.get("OPENWORLDSAM_BIN")
SECONDS = 600
"""Time after which a block counts as stuck."""
NOT_RUN = {
    "curl": "fetches gigabytes",
    "unzip": "of what curl fetches",
    "tar": "of what curl fetches",
    "pip": "`make test-wheel` installs",
    "make": "its targets are the other checks of .ci/run",
    "sudo": "installs a browser",
    "pytest": "this is one",
    "scontrol": "needs a cluster",
    "srun": "needs a cluster",
    "openworldsam download sam2": "fetches gigabytes; tests/test_download.py",
    "openworldsam download openworldsam": "the same",
    "openworldsam download evf": "the same",
}
ADDED = {
    "openworldsam benchmark": "--num-prompts 1 --repeats 1 --parts stages",
    "openworldsam pretrain": "--steps 1 --batch-size 1",
}
"""Options at the end of commands that take minutes."""
STUB = """\
#!{python} -IS
import os, sys
from multiprocessing.connection import Client
program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
given = sys.stdin.read() if words == ["-"] else ""
with Client({address!r}) as test:
    test.send((program, words, given, os.getcwd(), dict(os.environ)))
    print(end=test.recv())
"""


def blocks(page, language):
    """The code blocks of a page in a language, as they can be pasted."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


class Ran(NamedTuple):
    """A command that has run: its words with the program, exit status, what it wrote."""

    words: list[str]
    status: int
    output: str

    @property
    def line(self):
        return " ".join(self.words)


def in_fork(program, words, given, cwd, environment):
    """Run a command in a fresh process."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if program == "openworldsam":
        cli.main(words)
        return
    sys.argv = words
    exec(compile(given or Path(words[0]).read_text(), "page", "exec"), {"__name__": "__main__"})


class Shell:
    """A shell in a folder; `ran` lists the commands that it has run."""

    def __init__(self, folder, processes, programs):
        self.folder, self.processes, self.programs = folder, processes, programs
        self.ran = []
        programs.mkdir()
        stub = STUB.format(python=sys.executable, address=str(programs / "socket"))
        for name in ("openworldsam", "python", *(name for name in NOT_RUN if " " not in name)):
            (programs / name).write_text(stub if name in ("openworldsam", "python") else "#!/bin/sh\n")
            (programs / name).chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OPENWORLDSAM", "PYTHON"))}
        self.environment = {
            **kept,
            "PATH": path,
            "HOME": str(folder),
            **ALONE,
            "DETECTRON2_DATASETS": str(folder / "datasets"),
        }

    def bash(self, script):
        """Run a script, which stops at the first error that is not one of a command of `ran`."""
        address = str(self.programs / "socket")
        with Listener(address) as listener:
            server = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            server.start()
            done = subprocess.run(
                ["bash", "-e", "-c", script], cwd=self.folder, env=self.environment, timeout=SECONDS,
                capture_output=True, text=True,
            )  # fmt: skip
            with Client(address) as end:
                end.send(None)
            server.join()  # or it may accept what the next shell is sent
        assert not done.returncode, f"{script}\n{done.stderr}"

    def python(self, code):
        """Run a program in the folder."""
        self._run("python", ["-"], code, str(self.folder), self.environment)

    def _serve(self, listener):
        while True:
            with listener.accept() as stub:
                if (request := stub.recv()) is None:
                    return
                stub.send(self._run(*request))

    def _run(self, program, words, given, cwd, environment):
        if " ".join([program, *words]).startswith((*NOT_RUN,)):
            return ""
        words = words + ADDED.get(f"{program} {words[0]}", "").split()
        if program == "openworldsam" and words[:1] == ["app"]:
            status, output = self._visit(words, cwd, environment)
        elif INSTALLED:
            done = subprocess.run(
                [f"{INSTALLED}/{program}", *words], input=given, cwd=cwd, env=environment, timeout=SECONDS,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            status, output = done.returncode, done.stdout
        else:
            (done,) = self.processes(in_fork, program, words, given, cwd, environment)
            status, output = done.status, done.stdout + done.stderr
        self.ran.append(Ran([program, *words], status, output))
        return output

    def _visit(self, words, cwd, environment):
        """Start the page on a free port, fetch it and stop it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [*words, "--port", str(port)]
        if INSTALLED:
            page = subprocess.Popen([f"{INSTALLED}/openworldsam", *words], cwd=cwd, env=environment)
            stop, end = page.send_signal, page.wait
        else:
            page = self.processes.start(in_fork, "openworldsam", words, "", cwd, environment)
            stop, end = page.send, lambda: page.ended()[0].status
        content = b""
        for _ in range(SECONDS):
            with contextlib.suppress(OSError):
                content = urllib.request.urlopen(f"http://127.0.0.1:{port}").read()
                break
            time.sleep(1)
        stop(signal.SIGINT)
        status = end()
        return 0 if status == 130 else status, content.decode()  # 130: it answered, but had not finished starting
