"""File locks between processes. A lock ends with its process, however that ends; the lock file stays."""

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
    """Hold a lock file alone; ValueError with the message if another process holds it.

    The file is created. On a file system without locks there is only a warning.
    """
    with _opened(path) as file:
        try:
            _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(message) from None
        yield


@contextlib.contextmanager
def share(path: Path, first: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file together with others; the process that finds it free calls `first` while the others wait."""
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
        # DataLoader workers would hold the lock for a while after this process is killed
        os.register_at_fork(after_in_child=file.close)
        yield file


def _flock(file: IO[str], operation: int) -> bool:
    """Lock an open file; returns False, with a warning, if the file system has no locks."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning(
            "%s cannot be locked (%s); make sure that no other process writes there", file.name, error.strerror
        )
        return False
    return True
