"""Locks of processes: one holder, or many whose first one finds the place empty."""

import errno
import fcntl
import signal
import subprocess
import sys

import pytest

from openworldsam.utils.locking import lock, share

HOLDER = """
import sys, time
from pathlib import Path
from openworldsam.utils.locking import lock
with lock(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_has_one_holder_and_goes_with_a_killed_process(tmp_path):
    path = tmp_path / "folder/.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"^in use$"), lock(path, "in use"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with lock(path, "in use"):
        pass


def test_only_who_comes_first_clears_the_place(tmp_path):
    came = []
    with share(tmp_path / ".lock", lambda: came.append(1)):
        with share(tmp_path / ".lock", lambda: came.append(2)):
            assert came == [1]
        assert came == [1]
    with share(tmp_path / ".lock", lambda: came.append(3)):
        assert came == [1, 3]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(file, operation):
        raise OSError(number, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    came = []
    with lock(tmp_path / "a", "in use"), share(tmp_path / "b", lambda: came.append(1)):
        assert "cannot be locked (not here)" in caplog.text
    assert not came  # others may write


def test_other_errors_are_errors(tmp_path, monkeypatch):
    def fail(file, operation):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"), lock(tmp_path / "a", "in use"):
        pass
