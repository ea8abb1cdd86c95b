"""Training of a tiny SAM2 as SAM2's image model was trained: class-free masks from points, boxes and masks.

The mask decoder could solve this from the high-res features alone, leaving neither place nor form in the embedding,
which is all that the adapter reads: linear probes of such a model found colours and textures, but no positions (R2 0.0)
and shapes only by chance. The embedding of a large Hiera has both. Therefore a linear head must also predict, from
every cell of the embedding, the class-free description of its segment (`describe`) and the code of a click on it.

Shapes: B images, N prompts of the whole batch (sorted by image), n prompts of an image, H = W image size, S feature
side, M = 4S mask side, C width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from openworldsam.data.shapes import World, render
from openworldsam.modeling.image_encoder import STRIDE, ImageFeatures, SAM2ImageEncoder
from openworldsam.modeling.mask_decoder import SAM2MaskDecoder
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.pretraining import loop
from openworldsam.pretraining.describe import NUMBERS, POINT, box_of, describe_cells, description_loss, innermost

NO_POINT, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 1, 2, 3
"""SAM2's point labels."""


class Prompted(NamedTuple):
    """An image with n prompts; a batch has B of each tensor.

    image: uint8 [3, H, W].
    points: float [n, 2] (x, y in pixels), one in each segment.
    boxes: float [n, 4] (left, top, right, bottom in pixels).
    is_thing: bool [n]; the box of stuff is often the whole scene and therefore not used.
    masks: bool [n, H, W] of the segments.
    segment_map: [H, W].
    cells: float [NUMBERS + 1, S, S], description and weight of the segment in each cell.
    """

    image: Tensor
    points: Tensor
    boxes: Tensor
    is_thing: Tensor
    masks: Tensor
    segment_map: Tensor
    cells: Tensor


class PromptedScenes(Dataset[Prompted]):
    """Scenes with points and boxes on random segments, some of which may be prompted twice.

    Points are innermost and boxes exact, if so asked; otherwise points are mostly random, and boxes have noise.
    """

    def __init__(self, world: World, seed: int, num_prompts: int = 6, exact: bool = False) -> None:
        self.world, self.seed, self.num_prompts, self.exact = world, seed, num_prompts, exact

    def __getitem__(self, index: int) -> Prompted:
        scene = render(self.world, self.seed, index, "all")
        rng = np.random.default_rng([self.seed, index, 77])
        # things are harder, so they get most of the prompts
        weights = np.array([3.0 if segment.is_thing else 1.0 for segment in scene.segments])
        chosen = rng.choice(len(weights), self.num_prompts, p=weights / weights.sum())
        masks = np.stack([scene.segment_map == scene.segments[i].id for i in chosen])
        return Prompted(
            torch.from_numpy(scene.image).permute(2, 0, 1),
            torch.from_numpy(np.stack([self._point(mask, rng) for mask in masks])),
            torch.from_numpy(np.stack([self._box(mask, rng) for mask in masks])),
            torch.tensor([scene.segments[i].is_thing for i in chosen]),
            torch.from_numpy(masks),
            torch.from_numpy(scene.segment_map),
            torch.from_numpy(describe_cells(scene, STRIDE)),
        )

    def _point(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.exact or rng.random() < 0.3:
            return innermost(mask)
        ys, xs = np.nonzero(mask)
        pick = int(rng.integers(len(ys)))
        return np.array([xs[pick] + 0.5, ys[pick] + 0.5], np.float32)

    def _box(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        box = box_of(mask)
        if self.exact:
            return box
        noise = rng.normal(0, 0.05, 4) * np.tile(box[2:] - box[:2], 2)
        return np.clip(box + np.clip(noise, -10, 10), 0, len(mask)).astype(np.float32)


class TinySAM2(loop.Trainee):
    """The two SAM2 components of an `OpenWorldSAM`, on its device; all of their parameters are trained."""

    def __init__(self, model: OpenWorldSAM) -> None:
        super().__init__()
        self.image_encoder: SAM2ImageEncoder = model.image_encoder
        self.mask_decoder: SAM2MaskDecoder = model.mask_decoder
        width = model.image_encoder.width
        # discarded after training: predicts the position code of the segment's innermost point, and its description
        self.telling = nn.Conv2d(width, width + NUMBERS, 1)
        self.pixel_mean, self.pixel_std = model.pixel_mean, model.pixel_std
        self.to(model.device).requires_grad_(True)

    @torch.no_grad()
    def start_local(self) -> None:
        """Initialise positions in the image encoder, and attention between tokens and image at equal positions.

        Positions are random Fourier features, whose products fall with distance, but only if keys and queries are
        projected alike. With independent random projections this was not learnt in a thousand steps: all things were
        segmented, wherever the point was.
        """
        nn.init.normal_(self.image_encoder.backbone.trunk.pos_embed, std=0.5)  # zeros would stay small for long
        transformer = self.mask_decoder.decoder.transformer
        crossing = [transformer.final_attn_token_to_image]
        for layer in transformer.layers:
            crossing += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        for attention in crossing:
            attention.q_proj.weight.mul_(3)
            attention.k_proj.weight.copy_(attention.q_proj.weight)

    def encode(self, images: Tensor) -> ImageFeatures:
        """Encode images, uint8 [B, 3, H, W], of SAM2's input size."""
        return self.image_encoder((images.to(self.device).float() - self.pixel_mean) / self.pixel_std)

    def points(self, points: Tensor) -> Tensor:
        """Make one token [N, 1, C] per point [N, 2], as each of the adapter's queries is one token."""
        labels = torch.full((len(points), 1), FOREGROUND, device=points.device)
        return self.mask_decoder.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)[0][:, :1]

    def points_or_boxes(self, points: Tensor, boxes: Tensor, boxed: Tensor) -> Tensor:
        """Make SAM2's tokens [N, 3, C] of points [N, 2] or, where `boxed` [N], of boxes [N, 4]."""
        corners = torch.stack([torch.where(boxed[:, None], boxes[:, :2], points), boxes[:, 2:]], dim=1)
        labels = torch.tensor([[FOREGROUND, NO_POINT], [TOP_LEFT, BOTTOM_RIGHT]], device=points.device)
        return self.mask_decoder.prompt_encoder(points=(corners, labels[boxed.long()]), boxes=None, masks=None)[0]

    def decode(
        self, features: ImageFeatures, image_index: Tensor, tokens: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode tokens [N, T, C] and mask prompts [N, 1, M, M] to logits [N, 4, M, M] and predicted IoU [N, 4]."""
        _, dense = self.mask_decoder.prompt_encoder(points=None, boxes=None, masks=mask)
        logits, iou, _, _ = self.mask_decoder.decoder.predict_masks(
            image_embeddings=features.embed[image_index],
            image_pe=self.mask_decoder.positions(),
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[level[image_index] for level in features.high_res],
        )
        return logits.float(), iou.float()

    def place_code(self, points: Tensor) -> Tensor:
        """Return SAM2's position code [..., C] of points [..., 2], given as fractions of the scene."""
        with torch.autocast(points.device.type, enabled=False):
            return self.mask_decoder.prompt_encoder.pe_layer._pe_encoding(points.float())

    def losses(self, batch: Prompted, step: int) -> dict[str, Tensor]:
        """Return the losses of a step: of the cells, and after `SEEING_STEPS` of every prompt.

        On every prompt both SAM2's single mask and the best of its three others are trained; every fourth step decodes
        again with the first mask as an additional prompt. Masks alone are slow to separate neighbours of one colour, so
        the first steps also pull the features of a segment's pixels together.
        """
        features = self.encode(batch.image)
        cells = batch.cells.to(self.device).movedim(1, -1)
        told = self.telling(features.embed).float().movedim(1, -1)
        code = F.mse_loss(told[..., :-NUMBERS], self.place_code(cells[..., POINT]), reduction="none").mean(dim=-1)
        found = {
            "place": 4 * (code * cells[..., -1]).sum() / cells[..., -1].sum().clamp(min=1),
            "cells": description_loss(told[..., -NUMBERS:], cells),
        }
        if step <= loop.SEEING_STEPS:
            segment_map = batch.segment_map.to(self.device)
            return found | {"affinity": affinity_loss(features.high_res[0].float(), segment_map)}
        index, points, boxes, is_thing, masks = self._prompts(batch)
        boxed = (torch.rand(len(points)) < 0.5).to(self.device) & is_thing
        tokens = self.points(points) if step % 2 else self.points_or_boxes(points, boxes, boxed)
        target = masks.float()[:, None]
        logits, iou = self.decode(features, index, tokens)
        found |= _losses(logits, iou, target)
        if step % 4 == 0:
            again, iou = self.decode(features, index, tokens, logits[:, :1].detach().clamp(-32, 32))
            second = _losses(again, iou, target)
            found |= {name: found[name] + second[name] for name in second}
        return found

    def scores(self, batch: Prompted) -> dict[str, Tensor]:
        """Return the IoU from a point (things, stuff) and from a box (things), and the error of the predicted IoU."""
        features = self.encode(batch.image)
        index, points, boxes, is_thing, masks = self._prompts(batch)

        def answer(tokens: Tensor) -> tuple[Tensor, Tensor]:
            logits, scores = self.decode(features, index, tokens)
            full = F.interpolate(logits[:, :1], masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
            return paired_iou(full, masks), scores[:, 0]

        of_point, score = answer(self.points(points))
        of_box, _ = answer(self.points_or_boxes(points, boxes, torch.ones_like(is_thing)))
        return {
            "point, things": of_point[is_thing],
            "point, stuff": of_point[~is_thing],
            "box, things": of_box[is_thing],
            "score error": (score - of_point).abs(),
        }

    def _prompts(self, batch: Prompted) -> tuple[Tensor, ...]:
        """Return image_index, points, boxes, is_thing and masks of the N prompts of a batch, on the model's device."""
        index = torch.arange(len(batch.image)).repeat_interleave(batch.points.shape[1])
        parts = (part.flatten(0, 1) for part in (batch.points, batch.boxes, batch.is_thing, batch.masks))
        return tuple(part.to(self.device) for part in (index, *parts))


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Return cross-entropy plus dice [N, m] of logits [N, m, M, M] against masks [N, 1, H, W], over M x M cells.

    A balanced term gives inside and outside the same weight; without it small things end as empty masks.
    """
    soft = F.adaptive_avg_pool2d(target, logits.shape[-1]).expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    share = soft.mean(dim=(2, 3), keepdim=True).clamp(0.002, 0.998)
    balance = soft / share + (1 - soft) / (1 - share)
    probabilities = logits.sigmoid()
    overlap = (probabilities * soft).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / ((probabilities + soft).sum(dim=(2, 3)) + 1)
    return ((2 + 0.5 * balance) * entropy).mean(dim=(2, 3)) + dice


def _losses(logits: Tensor, iou: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the losses of mask logits [N, 4, M, M] and predicted IoU [N, 4] against masks [N, 1, H, W]."""
    loss = mask_losses(logits, target)
    true_iou = paired_iou(logits.detach() > 0, F.adaptive_avg_pool2d(target, logits.shape[-1]) > 0.5)
    return {
        "masks": (loss[:, 0] + 0.5 * loss[:, 1:].min(dim=1).values).mean(),
        "iou": 0.5 * (iou - true_iou).abs().mean(),
    }


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU [...] of each pair of masks, bool [..., H, W]; 0 if both are empty."""
    return (a & b).sum(dim=(-2, -1)) / (a | b).sum(dim=(-2, -1)).clamp(min=1)


def affinity_loss(features: Tensor, segment_map: Tensor, pairs: int = 2048) -> Tensor:
    """Return the loss of predicting from the similarity of features [B, c, M, M] whether near pixels share a segment.

    Of an image's pairs of pixels, those with void, 0 in the segment map [B, H, W], are left out.
    """
    batch, side = len(features), features.shape[-1]
    stride = segment_map.shape[-1] // side
    ids = segment_map[:, stride // 2 :: stride, stride // 2 :: stride].flatten(1)
    first = torch.randint(side * side, (batch, pairs), device=ids.device)
    offset = torch.randint(-8, 9, (2, batch, pairs), device=ids.device)
    row, column = (first // side + offset[0]).clamp(0, side - 1), (first % side + offset[1]).clamp(0, side - 1)
    second = row * side + column
    unit = F.normalize(features.flatten(2), dim=1)
    likeness = torch.stack([(u[:, i] * u[:, j]).sum(dim=0) for u, i, j in zip(unit, first, second, strict=True)])
    a, b = ids.gather(1, first), ids.gather(1, second)
    loss = F.binary_cross_entropy_with_logits(8 * (likeness - 0.5), (a == b).float(), reduction="none")
    valid = (a > 0) & (b > 0)
    return (loss * valid).sum() / valid.sum().clamp(min=1)
