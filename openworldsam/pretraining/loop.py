"""Training loop for the encoders and the memory: AdamW, warm-up and cosine decay, bf16, resumable."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
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


class Trainee(nn.Module, ABC):
    """A module to train, on batches as PyTorch's `default_collate` makes them."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Return the scalar losses of a batch at a step (from 1)."""

    @abstractmethod
    def scores(self, batch: Any) -> dict[str, Tensor]:
        """Return the values [n] of each score in a batch."""


@torch.no_grad()
def validate(model: Trainee, data: Dataset[Any], count: int, batch_size: int = 10) -> dict[str, float]:
    """Return the mean of each score over the first `count` examples of a dataset."""
    found = defaultdict(list)
    for batch in DataLoader(data, batch_size, sampler=range(count)):
        for name, values in model.scores(batch).items():
            found[name].append(values.cpu())
    return {name: torch.cat(values).double().mean().item() for name, values in sorted(found.items())}


def pretrain(model: Trainee, data: Dataset[Any], schedule: Schedule, state_file: Path, workers: int) -> None:
    """Train all parameters that require a gradient; resume from `state_file` if it exists.

    Example n of the dataset, which has no end, is the n-th of the training. The state file holds weights, optimizer and
    step, and is written every `PERIOD` steps.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in trained if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    start = 0
    if state_file.is_file():
        try:
            state = torch.load(state_file, map_location="cpu", weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            start = state["step"]
        except Exception as error:  # a damaged file makes torch raise almost anything
            raise ValueError(
                f"{state_file} cannot be read ({type(error).__name__}); delete it to start again"
            ) from error
        logger.info("resuming at step %d", start)
    remaining = range(start * schedule.batch_size, schedule.steps * schedule.batch_size)
    loader = DataLoader(data, schedule.batch_size, sampler=remaining, num_workers=workers)
    device = model.device
    mean: dict[str, float] = {}
    begun = time.monotonic()
    for step, batch in enumerate(loader, start=start + 1):
        torch.manual_seed(step)  # random draws must not depend on where training was resumed
        # with heads this narrow, flash attention is slow in the backward pass on a CPU
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
        with torch.autocast(device.type, torch.bfloat16), attention:
            found = model.losses(batch, step)
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
