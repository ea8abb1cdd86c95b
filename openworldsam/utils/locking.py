"""File locks between processes. A lock ends with its process, however that ends; the lock file stays."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

_UNSUPPORTED = {None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def lock(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file alone; ValueError with the message if another process holds it.

    The file is created. On a file system without locks there is only a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ValueError(message) from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) not in _UNSUPPORTED:
            raise
        logger.warning("%s cannot be locked (%s); make sure that no other process writes there", path, error)
    try:
        yield
    finally:
        held.release()
