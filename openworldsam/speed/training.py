"""A training step on images in memory, with nothing, prompt embeddings or all encoder outputs from a cache.

Reading from the disk is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from openworldsam.engine.trainer import build_optimizer
from openworldsam.parity.model import disc_targets
from openworldsam.speed.pipeline import Pipeline, State

CACHES = ("no cache", "prompt cache", "full cache")
"""Cached: nothing, prompt embeddings, prompt embeddings and image features."""


def training_batch(pipeline: Pipeline, images: int, cache: str) -> list[dict[str, Any]]:
    """Batch of copies of the pipeline's image and prompts, with a disc as target of each prompt."""
    pixels, count = pipeline.pixels().cpu(), len(pipeline.prompts)
    places = np.random.default_rng(0).uniform(0.2, 0.8, (count, 2))
    discs = np.column_stack([np.arange(count), places, np.full(count, 0.2)])
    targets = disc_targets(discs, count, (pixels.shape[1], pixels.shape[2]))
    x: dict[str, Any] = {"image": pixels, "prompts": pipeline.prompts, "targets": targets}
    state = State()
    if cache != "no cache":
        pipeline.read(state)
        pipeline.encode_prompts(state)
        x["prompt_embeddings"] = state.embeddings.float().cpu()
    if cache == "full cache":
        pipeline.encode_image(state)
        embed, high_res = state.features
        x["image_embed"] = embed[0].bfloat16().cpu()
        x["high_res"] = tuple(level[0].bfloat16().cpu() for level in high_res)
    return [x] * images


def training_step(pipeline: Pipeline, images: int, cache: str) -> Callable[[], None]:
    """Make a call that updates the pipeline's adapter once, as `Trainer.run_step` does."""
    model, batch = pipeline.model, training_batch(pipeline, images, cache)
    optimizer = build_optimizer(pipeline.cfg, model)
    scaler = torch.amp.GradScaler(model.device.type, enabled=model.precision == "fp16")
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def step() -> None:
        model.train()
        loss = pipeline.loss(batch)
        scaler.scale(loss).backward()
        model.eval()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(trained, pipeline.cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
        torch.stack([loss.detach(), norm]).tolist()  # the trainer checks and logs them
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step
