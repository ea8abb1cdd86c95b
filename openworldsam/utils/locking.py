"""Locks of processes on a folder. They go with their process, however that ends; their files stay."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def lock(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file, which is made, alone. Where the file system has no locks a warning says so.

    Raises:
        ValueError: another process holds it; with the message.
    """
    with _opened(path) as file:
        try:
            _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(message) from None
        yield


@contextlib.contextmanager
def share(path: Path, first: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file, which is made, together with others; who finds it free runs `first` before others go on."""
    with _opened(path) as file:
        with contextlib.suppress(BlockingIOError):
            if _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                first()
        _flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        # reading processes would hold the lock for a while after a kill
        os.register_at_fork(after_in_child=file.close)
        yield file


def _flock(file: IO[str], operation: int) -> bool:
    """Whether the file is locked now; False where that is not possible at all."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning("%s cannot be locked (%s); see to it that nobody else writes there", file.name, error.strerror)
        return False
    return True
