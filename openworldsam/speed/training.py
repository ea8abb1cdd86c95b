"""A training step on images in memory, with none, some or all of what the frozen encoders compute coming from a cache.

Reading images or a cache from the disk is not part of it.
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
"""Nothing, the prompt embeddings, and the image features too."""


def training_batch(pipeline: Pipeline, images: int, cache: str) -> list[dict[str, Any]]:
    """So many times the pipeline's image and prompts, one disc to find for each prompt; see `OpenWorldSAM.forward`."""
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
    """A call that updates the pipeline's adapter once, as `Trainer.run_step` does."""
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
        torch.stack([loss.detach(), norm]).tolist()  # which the trainer checks and logs
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step
