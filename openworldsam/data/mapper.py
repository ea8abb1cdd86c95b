"""Turn a record into a training example: an image, prompts, and the ground truth of each prompt.

Shapes: H, W image size, P prompts of the image, N_p ground-truth masks of prompt p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from openworldsam.data.augmentation import flip, large_scale_jitter
from openworldsam.data.negatives import Negatives
from openworldsam.data.preprocessing import to_tensor
from openworldsam.data.records import IMAGE_KEYS, Record

TRIES = 20
"""Most augmentations of an image to try until one leaves a mask."""


@dataclass(frozen=True)
class PromptTarget:
    """A prompt with its ground truth: texts to draw from, class id, thing or stuff, masks bool [N_p, H, W]."""

    texts: tuple[str, ...]
    class_id: int
    is_thing: bool
    masks: np.ndarray


class DatasetMapper:
    """Read records of any dataset; the given generator alone makes all random choices.

    The prompts of a record with segments are classes: the ground truth of a class is all its masks but crowds, and
    `max_prompts` classes are drawn if there are more. A referring record has one prompt for each object, drawn from
    its sentences. Candidates for absent prompts, which have no mask, follow; a training chooses some of them.

    Args:
        class_names: texts of the contiguous class ids; empty for referring datasets.
        is_thing: of the same classes.
        max_prompts: most classes per visit of an image; 0 for all.
        flip: mirror every other image, except with expressions, which mention left and right.
        large_scale_jitter: rescale by 0.1 to 2 and crop or pad to `image_size`.
        image_size: side of the jittered image in pixels.
        negatives: lists the absent prompts of an image; None for no absent prompts.
    """

    @configurable
    def __init__(
        self,
        *,
        class_names: tuple[str, ...] = (),
        is_thing: tuple[bool, ...] = (),
        max_prompts: int = 6,
        flip: bool = False,
        large_scale_jitter: bool = False,
        image_size: int = 1024,
        negatives: Negatives | None = None,
    ) -> None:
        self.class_names = tuple(class_names)
        self.is_thing = tuple(is_thing)
        self.max_prompts = max_prompts
        self.flip = flip
        self.large_scale_jitter = large_scale_jitter
        self.image_size = image_size
        self.negatives = negatives

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        class_names: tuple[str, ...] = (),
        is_thing: tuple[bool, ...] = (),
        negatives: Negatives | None = None,
    ) -> dict[str, Any]:
        return {
            "negatives": negatives,
            "class_names": class_names,
            "is_thing": is_thing,
            "max_prompts": cfg.INPUT.MAX_PROMPTS,
            "flip": cfg.INPUT.FLIP,
            "large_scale_jitter": cfg.INPUT.LARGE_SCALE_JITTER,
            "image_size": cfg.MODEL.SAM2.IMAGE_SIZE,
        }

    def __call__(
        self, record: Record, generator: np.random.Generator, *, need_ground_truth: bool = True
    ) -> dict[str, Any] | None:
        """Read a record.

        Args:
            record: of a registered dataset.
            generator: draws classes, sentences and augmentations.
            need_ground_truth: return None rather than an image without prompts.

        Returns:
            an input of `OpenWorldSAM.forward` in training mode, with file_name and image_id; None if the image has no
            usable ground truth. negative_draws has a uniform random number for each absent prompt, the last of the
            prompts, by which `engine.confusions` chooses.

        Raises:
            FileNotFoundError, ValueError: an image or annotation is missing, damaged or of another size.
        """
        image = record.read_image()
        prompts = self._expressions(record) if record.is_referring else self._classes(record, generator)
        may_flip = self.flip and not record.is_referring  # "the left dog" would be the wrong one
        for _ in range(TRIES if prompts else 1):
            pixels, masks = self._augmented(image, [prompt.masks for prompt in prompts], may_flip, generator)
            if any(map(len, masks)):
                break
        kept = [(prompt, mask) for prompt, mask in zip(prompts, masks, strict=True) if len(mask)]
        if not kept and need_ground_truth:
            return None
        texts = [prompt.texts[generator.integers(len(prompt.texts))] for prompt, _ in kept]
        absent = self._absent(record, len(prompts))
        kept += [(prompt, torch.zeros(0, *pixels.shape[1:], dtype=torch.bool)) for prompt in absent]
        return {
            "image": pixels,
            "prompts": texts + [prompt.texts[0] for prompt in absent],
            "negative_draws": generator.random(len(absent)).tolist(),
            "class_ids": [prompt.class_id for prompt, _ in kept],
            "is_thing": [prompt.is_thing for prompt, _ in kept],
            "targets": [mask for _, mask in kept],
            "num_classes": max([len(self.class_names), *(prompt.class_id + 1 for prompt, _ in kept)]),
            **{key: record[key] for key in IMAGE_KEYS},
        }

    def texts(self, record: Record) -> list[str]:
        """List every prompt that a visit of a record may draw: all classes, or all sentences, and absent prompts.

        Classes are those of `Record.segments`, so they include classes whose segments have no pixel.
        """
        if record.is_referring:
            own = list(dict.fromkeys(text for texts in record.sentences() for text in texts))
        else:
            classes = {segment["category_id"] for segment in record.segments() if not segment["iscrowd"]}
            own = [self.class_names[c] for c in sorted(classes)]
        absent = [prompt.texts[0] for prompt in self._absent(record, 0)] if own else []
        return own + absent

    def _classes(self, record: Record, generator: np.random.Generator) -> list[PromptTarget]:
        """Return the classes of a record in ascending order, at most `max_prompts` of them."""
        ids, segments = record.read_panoptic()
        masks: dict[int, list[np.ndarray]] = {}
        for segment in segments:
            mask = ids == segment["id"]
            if not segment["iscrowd"] and mask.any():
                masks.setdefault(segment["category_id"], []).append(mask)
        classes = sorted(masks)
        if self.max_prompts and len(classes) > self.max_prompts:
            classes = sorted(generator.choice(classes, self.max_prompts, replace=False).tolist())
        return [PromptTarget((self.class_names[c],), c, self.is_thing[c], np.stack(masks[c])) for c in classes]

    def _expressions(self, record: Record) -> list[PromptTarget]:
        """Return the objects of a referring record in its order."""
        return [
            PromptTarget(referent.sentences, index, True, referent.mask[None][: int(referent.mask.any())])
            for index, referent in enumerate(record.read_referring())
        ]

    def _absent(self, record: Record, first: int) -> list[PromptTarget]:
        """List candidates for absent prompts; `first` is the class id of the first absent expression."""
        none = np.zeros((0, 1, 1), dtype=bool)
        if self.negatives is None:
            return []
        if record.is_referring:
            texts = self.negatives.sentences(record)
            return [PromptTarget((text,), first + nth, True, none) for nth, text in enumerate(texts)]
        classes = self.negatives.classes(record)
        return [PromptTarget((self.class_names[c],), c, self.is_thing[c], none) for c in classes]

    def _augmented(
        self, image: np.ndarray, masks: list[np.ndarray], may_flip: bool, generator: np.random.Generator
    ) -> tuple[Tensor, list[Tensor]]:
        """Convert uint8 [H, W, 3] and P times bool [N_p, H, W] to tensors and augment them; drop masks left empty."""
        pixels, targets = to_tensor(image), [torch.from_numpy(mask) for mask in masks]
        if may_flip:
            pixels, targets = flip(pixels, targets, generator)
        if self.large_scale_jitter:
            pixels, targets = large_scale_jitter(pixels, targets, self.image_size, generator)
            targets = [target[target.flatten(1).any(dim=1)] for target in targets]
        return pixels, targets
