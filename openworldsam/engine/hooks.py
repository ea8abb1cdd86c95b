"""Output of a training for people: a progress line, and pictures of a step."""

from __future__ import annotations

import datetime
import logging
from typing import Any

import numpy as np
import torch
from detectron2.utils.events import EventWriter, get_event_storage

from openworldsam.modeling import OpenWorldSAM
from openworldsam.visualization import LabelledMasks, draw_comparison

logger = logging.getLogger(__name__)


class ProgressLine(EventWriter):
    """Logs a line with iteration, time left, images per second, losses, learning rate and memory.

    batch_size: images of an iteration, over all processes.
    """

    def __init__(self, max_iter: int, batch_size: int) -> None:
        self.max_iter, self.batch_size = max_iter, batch_size
        self.last = -1

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(20)
        values = {name: value for name, (value, _) in latest.items()}
        # the step that has set the rate, as the storage's own count includes one that was stopped
        done = latest["lr"][1] + 1 if "lr" in latest else self.last
        if done == self.last:  # before the first step, or called again at the end
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


def training_picture(model: OpenWorldSAM, x: dict[str, Any]) -> np.ndarray:
    """Draw an input in training mode, its ground truth and prediction side by side: uint8 [h, w, 3]."""
    # without class ids, the result's labels are the prompts' indices
    names = ("image", "prompts", "prompt_embeddings", "image_embed", "high_res")
    asked = {name: x[name] for name in names if name in x}
    model.eval()
    (answer,) = model.answer([asked], ("instance",))
    masks, scores, labels = (part.numpy() for part in answer["instance"].found()[:3])
    model.train()
    image, prompts, true = x["image"].permute(1, 2, 0).numpy(), tuple(x["prompts"]), torch.cat(x["targets"]).numpy()
    prompt_index = np.repeat(np.arange(len(prompts)), [len(target) for target in x["targets"]])
    truth = LabelledMasks("instance", prompts, true, np.ones(len(true), np.float32), prompt_index)
    predicted = LabelledMasks("instance", prompts, masks, scores, labels, answer["best_scores"].numpy())
    return draw_comparison(image, "image", {"ground truth": truth, "prediction": predicted})
