"""Progress of a long run over images, or of many prompts, in the log or on a terminal."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

from openworldsam.utils.launch import say

logger = logging.getLogger(__name__)
T = TypeVar("T")


_SHOWN: ContextVar[bool] = ContextVar("_SHOWN", default=False)


def with_progress(
    items: Iterable[T], total: int | None, unit: str, *, each: int = 1, delay: float = 0.0
) -> Iterator[T]:
    """Yield items; show a bar on a terminal, elsewhere a line a minute on stderr.

    Args:
        total: units in all, None if unknown.
        each: units in an item; the last item may have fewer.
        delay: seconds before a bar is shown, which then vanishes at the end.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, unit=unit, delay=delay, leave=not delay) as bar:
            for item in items:
                yield item
                bar.update(each if total is None else min(each, total - bar.n))
        return
    start = last = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) - last >= 60:
            last = now
            of_all = f" of {total:,}" if total else ""
            say(f"{done * each:,}{of_all} {unit}s, {done * each / (now - start):.2g} a second", file=sys.stderr)
        yield item


@contextmanager
def progress_of_prompts() -> Iterator[None]:
    """Show the progress of the `chunks` within, where that takes long."""
    token = _SHOWN.set(True)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def chunks(items: Iterable[T], total: int, unit: str, each: int) -> Iterator[T]:
    """Yield the chunks of a model's work on many prompts; see `with_progress` and `progress_of_prompts`."""
    return with_progress(items, total, unit, each=each, delay=5.0) if _SHOWN.get() else iter(items)


class Progress:
    """Logs the progress of a run at most every `period` seconds, and at the end."""

    def __init__(self, total: int, period: float = 10.0) -> None:
        self.total, self.period = total, period
        self.images = self.prompts = 0
        self.start = self.last = time.monotonic()

    def update(self, images: int, prompts: int) -> None:
        """Count images and prompts that were just finished."""
        self.images += images
        self.prompts += prompts
        now = time.monotonic()
        if now - self.last < self.period and self.images < self.total:
            return
        self.last = now
        rate = self.images / max(now - self.start, 1e-9)
        left = datetime.timedelta(seconds=round((self.total - self.images) / rate))
        logger.info(
            "%s of %s images, %s prompts, %.1f images/s, ETA %s",
            *(f"{self.images:,}", f"{self.total:,}", f"{self.prompts:,}", rate, left),
        )
