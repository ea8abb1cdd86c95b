"""Progress of a long run over images, in the log or on a terminal."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from openworldsam.utils.launch import say

logger = logging.getLogger(__name__)
T = TypeVar("T")


def with_progress(items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
    """Yield items; show a bar on a terminal, elsewhere a line a minute on stderr. `total` is None if unknown."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, unit=unit)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) - last >= 60:
            last = now
            of_all = f" of {total:,}" if total else ""
            say(f"{done:,}{of_all} {unit}s, {done / (now - start):.2g} a second", file=sys.stderr)
        yield item


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
