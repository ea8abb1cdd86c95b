"""Training loop for the encoders and the memory: AdamW, warm-up and cosine decay, bf16, resumable."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from openworldsam.utils.files import save_atomically

logger = logging.getLogger(__name__)


PERIOD = 250
"""Steps between saved states."""


class Schedule(NamedTuple):
    """Length and optimizer settings of a training; the learning rate falls by a cosine to a hundredth."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    weight_decay: float = 0.02
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def in_batches(data: Any, collate: Callable[[list[Any]], Any], count: int, batch_size: int) -> Iterator[Any]:
    """Yield the first `count` examples of a dataset in batches."""
    for start in range(0, count, batch_size):
        yield collate([data[index] for index in range(start, min(start + batch_size, count))])


def pretrain(
    model: nn.Module,
    data: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    losses: Callable[[Any, int], dict[str, Tensor]],
    schedule: Schedule,
    state_file: Path,
    workers: int,
) -> None:
    """Train all parameters that require a gradient; resume from `state_file` if it exists.

    Args:
        model: module to train, on its device.
        data: unlimited dataset; example n is the n-th of the training.
        collate: combines examples to a batch.
        losses: scalar losses by name, of a batch at a step (from 1).
        schedule: length and optimizer settings.
        state_file: weights, optimizer and step, written every `PERIOD` steps.
        workers: number of DataLoader workers.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in trained if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    start = 0
    if state_file.is_file():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start = state["step"]
        logger.info("resuming at step %d", start)
    remaining = range(start * schedule.batch_size, schedule.steps * schedule.batch_size)
    loader = DataLoader(data, schedule.batch_size, sampler=remaining, num_workers=workers, collate_fn=collate)
    device = next(model.parameters()).device
    mean: dict[str, float] = {}
    begun = time.monotonic()
    for step, batch in enumerate(loader, start=start + 1):
        torch.manual_seed(step)  # random draws must not depend on where training was resumed
        # with heads this narrow, flash attention is slow in the backward pass on a CPU
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
        with torch.autocast(device.type, torch.bfloat16), attention:
            found = losses(batch, step)
        torch.stack(list(found.values())).sum().backward()
        nn.utils.clip_grad_norm_(trained, schedule.clip, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        for name, value in found.items():
            mean[name] = 0.98 * mean.get(name, value.item()) + 0.02 * value.item()
        if step % 50 == 0 or step == schedule.steps:
            words = "  ".join(f"{name} {value:.4f}" for name, value in mean.items())
            seconds = (time.monotonic() - begun) / (step - start)
            logger.info("%d/%d  %s  %.2f s per step", step, schedule.steps, words, seconds)
        if step % PERIOD == 0 or step == schedule.steps:
            content = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
            save_atomically(state_file, partial(torch.save, content))
