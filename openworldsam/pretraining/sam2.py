"""Training of a tiny SAM2 as SAM2's image model was trained: class-free masks from points, boxes and masks.

The mask decoder could solve this from the high-res features alone, leaving neither place nor form in the embedding,
which is all that the adapter reads: linear probes of such a model found colours and textures, but no positions (R2 0.0)
and shapes only by chance. The embedding of a large Hiera has both. Therefore a linear head must also predict, from
every cell of the embedding, the class-free description of its segment (`describe`) and the code of a click on it.

Shapes: B images, N prompts of the whole batch (sorted by image), n prompts of an image, H = W image size, S feature
side, M = 4S mask side, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from openworldsam.data.shapes import World, render
from openworldsam.modeling.image_encoder import STRIDE, ImageFeatures, SAM2ImageEncoder
from openworldsam.modeling.mask_decoder import SAM2MaskDecoder
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.pretraining.describe import NUMBERS, POINT, box_of, describe_cells, description_loss, innermost
from openworldsam.pretraining.loop import Trainee

NO_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3
"""SAM2's point labels."""
SEEING_STEPS = 2500
"""First steps, on images alone, in place of the masked images with which SAM2's encoder began."""
LARGEST_LOGIT = 32.0
"""Bound of mask prompts, as in SAM2's training."""


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
    """Scenes of some worlds in turn with points and boxes on random segments, some of which may be prompted twice.

    Points are innermost and boxes exact, if so asked; otherwise points are mostly random, and boxes have noise.
    """

    def __init__(self, worlds: Sequence[World], seed: int, num_prompts: int = 6, exact: bool = False) -> None:
        self.worlds, self.seed, self.num_prompts, self.exact = worlds, seed, num_prompts, exact

    def __getitem__(self, index: int) -> Prompted:
        scene = render(self.worlds[index % len(self.worlds)], self.seed, index, "all")
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


class TinySAM2(Trainee):
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

    def clicks(self, points: Tensor, labels: Tensor) -> Tensor:
        """Make SAM2's tokens [N, t + 1, C] of clicks [N, t, 2] with labels [N, t]."""
        return self.mask_decoder.prompt_encoder(points=(points, labels), boxes=None, masks=None)[0]

    def decode(
        self, features: ImageFeatures, image_index: Tensor, tokens: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode tokens [N, T, C] and mask prompts [N, 1, M, M] to logits [N, 4, M, M] and predicted IoU [N, 4]."""
        nothing, dense = self.mask_decoder.prompt_encoder(points=None, boxes=None, masks=mask)
        if tokens is None:
            tokens = nothing.expand(len(image_index), -1, -1)
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

        On every prompt both SAM2's single mask and the best of its three others are trained. Every second step decodes
        again, in turn: the mask alone, as two-stage inference does; the mask with one to three corrections; a spoilt
        true mask alone; corrections alone. Masks are slow to separate neighbours of one colour, so the first steps
        also pull the features of a segment's pixels together.
        """
        features = self.encode(batch.image)
        cells = batch.cells.to(self.device).movedim(1, -1)
        told = self.telling(features.embed).float().movedim(1, -1)
        code = F.mse_loss(told[..., :-NUMBERS], self.place_code(cells[..., POINT]), reduction="none").mean(dim=-1)
        found = {
            "place": 4 * (code * cells[..., -1]).sum() / cells[..., -1].sum().clamp(min=1),
            "cells": description_loss(told[..., -NUMBERS:], cells),
        }
        if step <= SEEING_STEPS:
            segment_map = batch.segment_map.to(self.device)
            return found | {"affinity": affinity_loss(features.high_res[0].float(), segment_map)}
        index, points, boxes, is_thing, masks = self._prompts(batch)
        boxed = (torch.rand(len(points)) < 0.5).to(self.device) & is_thing
        target = masks.float()[:, None]
        tokens = self.points(points) if step % 2 else self.points_or_boxes(points, boxes, boxed)
        logits, iou = self.decode(features, index, tokens)
        found |= _losses(logits, iou, target)
        if step % 2 == 0:
            first = logits[:, :1].detach().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
            turn = step // 2 % 4
            prompt, clicks = None, None
            if turn == 0:
                # a first mask of something else says nothing of the target
                right = paired_iou(at_size(first, masks), masks) > 0.5
                prompt = torch.where(right[:, None, None, None], first, spoilt(target, first))
            elif turn == 1:
                prompt, clicks = first, self.clicks(*corrections(at_size(first, masks), masks, 1 + step // 8 % 3))
            elif turn == 2:
                prompt = spoilt(target, first)
            else:
                places, labels = corrections(at_size(first, masks), masks, 1 + step // 8 % 2)
                places, labels = torch.cat([points[:, None], places], dim=1), F.pad(labels, (1, 0), value=FOREGROUND)
                clicks = self.clicks(places, labels)
            again, iou = self.decode(features, index, clicks, prompt)
            second = _losses(again, iou, target)
            found |= {name: found[name] + second[name] for name in second}
        return found

    def scores(self, batch: Prompted) -> dict[str, Tensor]:
        """Return the IoU from each kind of prompt, of things and stuff, and the error of the IoU predicted for a point.

        A "mask" is the one from the point, alone as in two-stage inference; a "spoilt mask" the true one blurred and
        cut; "3 clicks" are the point and two corrections, each with the mask before it.
        """
        features = self.encode(batch.image)
        index, points, boxes, is_thing, masks = self._prompts(batch)

        def answer(tokens: Tensor | None, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
            logits, scores = self.decode(features, index, tokens, mask)
            logits = logits[:, :1].clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
            return paired_iou(at_size(logits, masks), masks), scores[:, 0], logits

        of_point, score, first = answer(self.points(points))
        of_box, _, _ = answer(self.points_or_boxes(points, boxes, torch.ones_like(is_thing)))
        of_mask, _, _ = answer(None, first)
        torch.manual_seed(0)
        of_spoilt, _, _ = answer(None, spoilt(masks.float()[:, None], first))
        places, labels, mask = points[:, None], torch.full_like(index[:, None], FOREGROUND), first
        for _ in range(2):
            place, label = corrections(at_size(mask, masks), masks, 1)
            places, labels = torch.cat([places, place], dim=1), torch.cat([labels, label], dim=1)
            of_clicks, _, mask = answer(self.clicks(places, labels), mask)
        kinds = {"point": of_point, "mask": of_mask, "spoilt mask": of_spoilt, "3 clicks": of_clicks}
        found = {f"{kind}, things": iou[is_thing] for kind, iou in {**kinds, "box": of_box}.items()}
        found |= {f"{kind}, stuff": iou[~is_thing] for kind, iou in kinds.items()}
        return {**found, "score error": (score - of_point).abs()}

    def _prompts(self, batch: Prompted) -> tuple[Tensor, ...]:
        """Return image_index, points, boxes, is_thing and masks of the N prompts of a batch, on the model's device."""
        index = torch.arange(len(batch.image)).repeat_interleave(batch.points.shape[1])
        parts = (part.flatten(0, 1) for part in (batch.points, batch.boxes, batch.is_thing, batch.masks))
        return tuple(part.to(self.device) for part in (index, *parts))


def at_size(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the masks, bool [N, H, W], of logits [N, 1, M, M] at the size of `masks`."""
    return F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0


def spoilt(target: Tensor, like: Tensor) -> Tensor:
    """Return true masks [N, 1, H, W] as a first stage might have found them: logits [N, 1, M, M], the size of `like`.

    They are blurred, too large or too small by places, and one in three lacks a part.
    """
    count, _, side, _ = like.shape
    soft = F.avg_pool2d(F.adaptive_avg_pool2d(target, side), 3, stride=1, padding=1, count_include_pad=False)
    drift = F.interpolate(torch.randn(count, 1, 6, 6), (side, side), mode="bicubic", align_corners=False)
    level = 0.15 * drift + 0.1 * torch.randn(count, 1, 1, 1)
    # a half-plane whose border runs beside the middle of the mask
    angle, along = 2 * torch.pi * torch.rand(count, 1, 1), torch.arange(side) / side
    across = along * angle.cos() + along[:, None] * angle.sin()
    inside = soft[:, 0].cpu() / soft[:, 0].cpu().sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    middle = (inside * across).sum(dim=(1, 2), keepdim=True)
    spread = (inside * (across - middle) ** 2).sum(dim=(1, 2), keepdim=True).sqrt()
    cut = (across > middle + 0.5 * spread)[:, None] & (torch.rand(count, 1, 1, 1) < 1 / 3)
    soft = (soft + level.to(soft.device)).masked_fill(cut.to(soft.device), 0)
    return (16 * (2 * soft - 1)).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def corrections(found: Tensor, masks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Place clicks on the errors of found masks [N, H, W]: points [N, count, 2] and labels [N, count].

    Each is the innermost pixel of what is missing or too much, whichever lies deeper, once the earlier ones are
    excluded with their surroundings. Where nothing is wrong, it is the innermost pixel of the mask. Clicks for which
    nothing is left are labelled `NO_POINT`.
    """
    points = torch.zeros(len(masks), count, 2)
    labels = torch.full((len(masks), count), NO_POINT)
    for n, (mine, truth) in enumerate(zip(found.cpu().numpy(), masks.cpu().numpy(), strict=True)):
        wrong = {FOREGROUND: truth & ~mine, BACKGROUND: mine & ~truth}
        depth = {label: _depth(part) for label, part in wrong.items() if part.any()} or {FOREGROUND: _depth(truth)}
        for k in range(count):
            label = max(depth, key=lambda label: depth[label].max())
            if not depth[label].any():
                break
            y, x = np.unravel_index(depth[label].argmax(), truth.shape)
            points[n, k] = torch.tensor([x + 0.5, y + 0.5])
            labels[n, k] = label
            reach = max(2, int(depth[label][y, x]))
            depth[label][max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = 0
    return points.to(masks.device), labels.to(masks.device)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel of a mask, bool [H, W], to its outside."""
    return cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1].copy()


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
