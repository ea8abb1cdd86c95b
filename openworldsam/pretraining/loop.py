"""The loop that encoders and memory are trained by: AdamW, warm-up and cosine decay, bf16, states to go on from."""

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
from torch.utils.data import DataLoader, Dataset, Sampler

from openworldsam.utils.files import save_atomically

logger = logging.getLogger(__name__)


PERIOD = 250
"""Steps between two states; a kill loses no more."""


class Schedule(NamedTuple):
    """steps, examples of a step, learning rate after `warmup` steps, from where it falls to a hundredth by a cosine."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    weight_decay: float = 0.02
    clip: float = 1.0


class _Positions(Sampler[int]):
    """start, start + 1, ... up to the end."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))


def pretrain(
    model: nn.Module,
    data: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    losses: Callable[[Any, int], dict[str, Tensor]],
    schedule: Schedule,
    state_file: Path,
    workers: int,
) -> None:
    """Train all parameters that need a gradient; goes on from `state_file` if it is there.

    Args:
        model: what is trained, on its device.
        data: example n of the training; never the same twice.
        collate: makes a batch of examples.
        losses: of a batch at a step (from 1); scalars by name.
        schedule: length and learning rate.
        state_file: weights, optimizer and step, written every `PERIOD` steps.
        workers: reading processes.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_factor, schedule))
    start = 0
    if state_file.is_file():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start = state["step"]
        logger.info("goes on at step %d", start)
    positions = _Positions(start * schedule.batch_size, schedule.steps * schedule.batch_size)
    loader = DataLoader(data, schedule.batch_size, sampler=positions, num_workers=workers, collate_fn=collate)
    device = next(model.parameters()).device
    mean: dict[str, float] = {}
    begun = time.monotonic()
    for step, batch in enumerate(loader, start=start + 1):
        torch.manual_seed(step)  # what is drawn does not hang on where the training was taken up
        with torch.autocast(device.type, torch.bfloat16), _attention(device):
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
            logger.info("%d/%d  %s  %.2f s a step", step, schedule.steps, words, seconds)
        if step % PERIOD == 0 or step == schedule.steps:
            content = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "step": step,
            }
            save_atomically(state_file, partial(torch.save, content))


def _attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Flash attention is slow backwards on a CPU where heads are as narrow as here."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def _factor(schedule: Schedule, step: int) -> float:
    """Of the learning rate at a step."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
