"""A lock of processes has one holder and goes with it, however that ends."""

import ast
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import openworldsam
from openworldsam.utils.locking import lock

HOLDER = """
import os, sys, time
from pathlib import Path
from openworldsam.utils.locking import lock
with lock(Path(sys.argv[1]), "taken"):
    worker = os.fork()  # as a DataLoader does; it must not keep the lock
    if not worker:
        print(os.getpid(), flush=True)  # it has let go by now
        time.sleep(30)
    time.sleep(60)
"""


def test_a_lock_has_one_holder_and_goes_with_a_killed_process(tmp_path):
    path = tmp_path / "folder/.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    try:
        worker = int(holder.stdout.readline())
        with pytest.raises(ValueError, match=r"^in use$"), lock(path, "in use"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with lock(path, "in use"):
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(file, operation):
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path / "a", "in use"):
        assert "cannot be locked" in caplog.text and "not here" in caplog.text


def test_other_errors_are_errors(tmp_path, monkeypatch):
    def fail(file, operation):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"), lock(tmp_path / "a", "in use"):
        pass


POSIX = {"fcntl", "grp", "posix", "pwd", "resource", "termios", "tty"}


def test_nothing_needs_posix_to_be_imported():
    package = Path(openworldsam.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX & {name.split(".")[0] for name in names}, path
