"""Training of a video memory for the tiny SAM2: to find a thing of the first frame in the following frames.

Image encoder and mask decoder stay frozen, except for the head that predicts whether an object is present, which the
image model does not use. Frames are processed as in SAM2's tracking, but with gradients.

Shapes: B clips, T frames, H = W image size, M = 4S mask side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from openworldsam.data.shapes import World
from openworldsam.data.shapes.clip import Moving, render_clip
from openworldsam.data.shapes.drawing import Thing
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.modeling.components import SAM2_VIDEO
from openworldsam.pretraining.loop import Trainee
from openworldsam.pretraining.sam2 import mask_losses, paired_iou
from openworldsam.video.memory import SAM2Memory

SPEED = 16.0
"""Highest speed of a thing along each axis, in pixels per frame."""
LOCAL = 1.5
"""Initial constant part of queries and keys."""
HEAD = "sam_mask_decoder.pred_obj_score_head."
"""Prefix of the tensors of the head that predicts presence."""
LEAST = 30
"""Least visible pixels of a thing that counts as present."""
PRESENT_AT_FIRST = 2.0
"""Initial logit of presence; positive, because the mask of an absent object has no gradient."""


class Tracked(NamedTuple):
    """A clip with one thing: images uint8 [T, 3, H, W]; masks bool [T, H, W] of its visible part. B in a batch."""

    images: Tensor
    masks: Tensor


class MovingThings(Dataset[Tracked]):
    """Clips of one to three things that move in straight lines, often behind each other or out of the scene.

    In a third of the clips the tracked thing is absent for some frames, as if it were hidden.
    """

    def __init__(self, world: World, seed: int, num_frames: int) -> None:
        self.world, self.seed, self.num_frames = world, seed, num_frames

    def __getitem__(self, index: int) -> Tracked:
        rng = np.random.default_rng([self.seed, index, 55])
        while True:
            moving, seed = [self._thing(rng) for _ in range(rng.integers(1, 4))], int(rng.integers(2**31))
            images, identities = self._render(moving, seed)
            areas = np.bincount(identities[0].ravel(), minlength=len(moving) + 1)[1:]
            if areas.max() >= 4 * LEAST:
                break
        chosen = int(rng.choice(np.flatnonzero(areas >= 4 * LEAST)))
        if rng.random() < 1 / 3:
            first, end = np.sort(rng.choice(np.arange(1, self.num_frames + 1), 2, replace=False))
            far = moving[chosen].thing._replace(x=-10.0 * self.world.size)
            others = self._render([*moving[:chosen], moving[chosen]._replace(thing=far), *moving[chosen + 1 :]], seed)
            images[first:end], identities[first:end] = (part[first:end] for part in others)
        return Tracked(torch.from_numpy(images).movedim(-1, 1), torch.from_numpy(identities == chosen + 1))

    def _render(self, moving: list[Moving], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Render images uint8 [T, H, W, 3] and identities [T, H, W]."""
        images, identities = zip(*render_clip(self.world, seed, moving, self.num_frames), strict=True)
        return np.stack(images), np.stack(identities)

    def _thing(self, rng: np.random.Generator) -> Moving:
        size = self.world.size
        place, step = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(-SPEED, SPEED, 2)
        step += 0.3 * SPEED * (0.5 - place / size)  # mostly inwards, where it meets other things
        shape, colour = str(rng.choice(self.world.shapes)), str(rng.choice(self.world.colours))
        diameter, angle = float(rng.uniform(*self.world.thing_size)), float(rng.uniform(-np.pi, np.pi))
        return Moving(Thing(shape, colour, float(place[0]), float(place[1]), diameter, angle), (step[0], step[1]))


class TinyMemory(Trainee):
    """Memory of an `OpenWorldSAM`; only its video modules and its presence head are trained."""

    def __init__(self, model: OpenWorldSAM) -> None:
        super().__init__()
        self.model, self.memory = model.requires_grad_(False).eval(), SAM2Memory(model)
        for name, parameter in self.memory.named_parameters():
            parameter.requires_grad_(name.startswith((*SAM2_VIDEO, HEAD)))
        nn.init.constant_(self.memory.get_parameter(f"{HEAD}layers.2.bias"), PRESENT_AT_FIRST)
        # Let each place of a frame attend to the same place in memory: positions rotate queries and keys, so a constant
        # part in both agrees where the places do. From random projections, 600 steps learnt to find things, but not
        # which one was tracked.
        for layer in self.memory.memory_attention.layers:
            for projection in (layer.cross_attn_image.q_proj, layer.cross_attn_image.k_proj):
                nn.init.constant_(projection.bias, LOCAL)

    def encode(self, images: Tensor) -> ImageFeatures:
        """Encode images uint8 [B, 3, H, W] of SAM2's input size, without gradients."""
        with torch.no_grad():
            return self.model.image_encoder((images.float() - self.model.pixel_mean) / self.model.pixel_std)

    def track(self, clips: Tracked) -> tuple[Tensor, Tensor]:
        """Track the thing of each clip from its mask in the first frame.

        Returns:
            mask logits [B, T - 1, M, M] and presence logits [B, T - 1].
        """
        images, device = clips.images, self.device
        memory = self.memory.begin(0, self.encode(images[:, 0].to(device)), clips.masks[:, 0].to(device))
        found = [
            self.memory.carry_on(frame, self.encode(images[:, frame].to(device)), memory)
            for frame in range(1, images.shape[1])
        ]
        logits, presence = zip(*found, strict=True)
        return torch.stack(logits, dim=1), torch.stack(presence, dim=1)

    def losses(self, batch: Tracked, step: int) -> dict[str, Tensor]:
        """Return the loss of the masks in frames where the thing is visible, and the loss of its presence."""
        logits, presence = (part.flatten(0, 1) for part in self.track(batch))
        masks = batch.masks[:, 1:].flatten(0, 1).to(logits.device)
        there = masks.sum(dim=(1, 2)) >= LEAST
        answered = there & (presence > 0)  # otherwise SAM2 replaces the mask by a constant
        of_masks = mask_losses(logits[answered, None], masks[answered, None].float())
        return {
            "masks": of_masks.sum() / max(1, int(answered.sum())),
            "presence": F.binary_cross_entropy_with_logits(presence, there.float()),
        }

    def scores(self, batch: Tracked) -> dict[str, Tensor]:
        """Return the IoU in frames where the thing is visible, and in every frame whether its presence is right."""
        logits, presence = (part.flatten(0, 1).cpu() for part in self.track(batch))
        masks = batch.masks[:, 1:].flatten(0, 1)
        there = masks.sum(dim=(1, 2)) >= LEAST
        full = F.interpolate(logits[:, None], masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
        return {"IoU": paired_iou(full, masks)[there], "presence": (presence > 0) == there}
