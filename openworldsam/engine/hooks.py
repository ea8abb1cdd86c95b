"""Hooks around a training step: states, a progress line, pictures."""

from __future__ import annotations

import datetime
import logging
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from openworldsam.engine.trainer import Trainer
from openworldsam.engine.training_state import save_state
from openworldsam.utils.files import save_png
from openworldsam.visualization import LabelledMasks, contact_sheet, draw_prediction

logger = logging.getLogger(__name__)


class Checkpoints(HookBase):
    """Saves the training state every `period` steps and at the end."""

    trainer: Trainer

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            save_state(self.trainer)


class ProgressLine(EventWriter):
    """Logs a line with iteration, time left, images per second, losses, learning rate and memory.

    Args:
        max_iter: iterations of the whole training.
        batch_size: images of an iteration, over all processes.
    """

    def __init__(self, max_iter: int, batch_size: int) -> None:
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.last = -1

    def write(self) -> None:
        storage = get_event_storage()
        values = {name: value for name, (value, _) in storage.latest_with_smoothing_hint(20).items()}
        done = min(storage.iter + 1, self.max_iter)
        if "lr" not in values or done == self.last:  # before the first step, or called again at the end
            return
        self.last = done
        words = [f"{done:,}/{self.max_iter:,}"]
        if "time" in values:
            left = datetime.timedelta(seconds=int(values["time"] * (self.max_iter - done)))
            words += [f"{left} left", f"{self.batch_size / values['time']:.2f} images/s"]
        words += [f"{name} {values[name]:.4g}" for name in sorted(values) if "loss" in name]
        words += [f"lr {values['lr']:.3g}", f"gradient norm {values['gradient_norm']:.3g}"]
        if "gradient_scale" in values:
            words.append(f"gradient scale {values['gradient_scale']:g}")
        if values["skipped_images"]:
            words.append(f"{values['skipped_images']:.0f} images skipped")
        if torch.cuda.is_available():
            words.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        logger.info("  ".join(words))


class Pictures(HookBase):
    """Draws ground truth and prediction of one image of the step, every `period` steps, into `pictures/`."""

    trainer: Trainer

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.period and done % self.period == 0 and comm.is_main_process():
            save_png(self.trainer.folder / f"pictures/{done:07d}.png", self._sheet(self.trainer.last_image))

    @torch.no_grad()
    def _sheet(self, x: dict[str, Any]) -> np.ndarray:
        image, prompts, counts = x["image"].permute(1, 2, 0).numpy(), tuple(x["prompts"]), list(map(len, x["targets"]))
        scores, index = np.ones(sum(counts), dtype=np.float32), np.repeat(np.arange(len(prompts)), counts)
        truth = LabelledMasks("instance", prompts, torch.cat(x["targets"]).numpy(), scores, index)
        # without class ids, the result's classes are the prompts' indices
        names = ("image", "prompts", "prompt_embeddings", "image_embed", "high_res")
        asked = {name: x[name] for name in names if name in x}
        model = self.trainer.model.eval()
        found = model([asked], tasks=("instance",))[0]["instances"].to("cpu")
        model.train()
        arrays = [tensor.numpy() for tensor in (found.pred_masks, found.scores, found.pred_classes)]
        predicted = LabelledMasks("instance", prompts, *arrays)
        panels = [("ground truth", draw_prediction(image, truth)), ("prediction", draw_prediction(image, predicted))]
        return contact_sheet(panels, columns=2)
