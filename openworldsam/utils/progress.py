"""Progress of a long run over images, in the log."""

from __future__ import annotations

import datetime
import logging
import time

logger = logging.getLogger(__name__)


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
