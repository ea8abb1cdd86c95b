"""A tiny SAM2, trained as SAM2's image model was: from points, boxes and masks to masks, without any class.

The mask decoder could answer these from the high-res features alone, and then the embedding that the adapter reads has
neither place nor form in it: linear probes of such a model found colours and textures, but no positions (R2 0.0) and
shapes by chance. A large Hiera's embedding has both. So every cell of the embedding must also tell where it is, and the
box and the coarse mask of the segment that it lies in.

Shapes: B images, N prompts of the whole batch (sorted by image), H = W = image size, S feature side, M = 4S mask side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from openworldsam.data.shapes import Scene, World, render
from openworldsam.modeling.image_encoder import STRIDE, ImageFeatures, SAM2ImageEncoder
from openworldsam.modeling.mask_decoder import SAM2MaskDecoder
from openworldsam.modeling.openworldsam import OpenWorldSAM

NO_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3
"""SAM2's point labels."""
MASK_SIDE = 8
DESCRIBED = 4 + MASK_SIDE**2
"""Numbers that describe a segment: its box, as fractions of the scene, and its mask within the box."""
AFFINITY_STEPS = 1500
"""Steps in which features are drawn together; masks as prompts come after them."""


class Prompted(NamedTuple):
    """An image and what is asked about it.

    image: uint8 [3, H, W].
    points, labels: float [n, 2, 2] (x, y in pixels) and int [n, 2].
    masks: bool [n, H, W], the segments.
    segment_map: [H, W].
    cells: float [DESCRIBED + 1, S, S], what each cell must tell of its segment, and how much it counts.
    """

    image: Tensor
    points: Tensor
    labels: Tensor
    masks: Tensor
    segment_map: Tensor
    cells: Tensor


class PromptedScenes(Dataset[Prompted]):
    """Scenes in which random segments are pointed at or boxed.

    Args:
        world: of the scenes.
        seed: of the scenes and of what is drawn.
        num_prompts: of a scene; a segment may be asked for twice.
        kind: "point" (the innermost one), "box" (the exact one), or "any" (both, imprecise).
    """

    def __init__(self, world: World, seed: int, num_prompts: int = 6, kind: str = "any") -> None:
        self.world, self.seed, self.num_prompts, self.kind = world, seed, num_prompts, kind

    def __getitem__(self, index: int) -> Prompted:
        scene = render(self.world, self.seed, index, "all")
        rng = np.random.default_rng([self.seed, index, 77])
        # most prompts ask for things, which are the harder part
        weights = np.array([3.0 if segment.is_thing else 1.0 for segment in scene.segments])
        chosen = rng.choice(len(weights), self.num_prompts, p=weights / weights.sum())
        masks = np.stack([scene.segment_map == scene.segments[i].id for i in chosen])
        asked = [self._prompt(mask, scene.segments[i].is_thing, rng) for mask, i in zip(masks, chosen, strict=True)]
        return Prompted(
            torch.from_numpy(scene.image).permute(2, 0, 1),
            torch.tensor(np.array([points for points, _ in asked]), dtype=torch.float32),
            torch.tensor([labels for _, labels in asked], dtype=torch.int32),
            torch.from_numpy(masks),
            torch.from_numpy(scene.segment_map),
            torch.from_numpy(describe_cells(scene)),
        )

    def _prompt(self, mask: np.ndarray, is_thing: bool, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
        # the box of stuff is often the whole scene, and says nothing
        boxed = self.kind == "box" or (self.kind == "any" and is_thing and rng.random() < 0.5)
        ys, xs = np.nonzero(mask)
        if boxed:
            corners = np.array([[xs.min(), ys.min()], [xs.max() + 1, ys.max() + 1]], dtype=np.float32)
            if self.kind == "any":
                noise = rng.normal(0, 0.05, (2, 2)) * (corners[1] - corners[0])
                corners = np.clip(corners + np.clip(noise, -10, 10), 0, len(mask))
            return corners, (TOP_LEFT, BOTTOM_RIGHT)
        if self.kind == "any" and rng.random() < 0.7:
            pick = int(rng.integers(len(ys)))
            y, x = ys[pick], xs[pick]
        else:
            y, x = np.unravel_index(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].argmax(), mask.shape)
        return np.array([[x + 0.5, y + 0.5], [0, 0]], dtype=np.float32), (FOREGROUND, NO_POINT)


def describe_cells(scene: Scene, stride: int = STRIDE) -> np.ndarray:
    """What each cell of `stride` pixels must tell: box and coarse mask of the segment at its centre; see `Prompted`."""
    size = len(scene.segment_map)
    table = np.zeros((len(scene.segments) + 1, DESCRIBED + 1), np.float32)
    for segment in scene.segments:
        mask = scene.segment_map == segment.id
        ys, xs = np.nonzero(mask)
        (top, left), (bottom, right) = (ys.min(), xs.min()), (ys.max() + 1, xs.max() + 1)
        crop = mask[top:bottom, left:right].astype(np.float32)
        coarse = cv2.resize(crop, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_AREA)
        box = np.array([left, top, right, bottom]) / size
        # things are fewer, and it is their form that names them
        table[segment.id] = [*box, *coarse.ravel(), 4.0 if segment.is_thing else 1.0]
    return table[scene.segment_map[stride // 2 :: stride, stride // 2 :: stride]].transpose(2, 0, 1)


def collate(examples: list[Prompted]) -> Prompted:
    """Stack B examples: image, segment_map and cells [B, ...], the others over all prompts [N, ...]."""
    images, points, labels, masks, maps, cells = zip(*examples, strict=True)
    prompts = (torch.cat(points), torch.cat(labels), torch.cat(masks))
    return Prompted(torch.stack(images), *prompts, torch.stack(maps), torch.stack(cells))


class TinySAM2(nn.Module):
    """The two SAM2 components of an `OpenWorldSAM`, all of whose parameters are trained here."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: OpenWorldSAM) -> None:
        super().__init__()
        self.image_encoder: SAM2ImageEncoder = model.image_encoder
        self.mask_decoder: SAM2MaskDecoder = model.mask_decoder
        width = model.image_encoder.width
        # thrown away afterwards
        self.telling = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.Conv2d(width, 2 + DESCRIBED, 1))
        self.register_buffer("mean", model.pixel_mean, persistent=False)
        self.register_buffer("std", model.pixel_std, persistent=False)
        self.requires_grad_(True)

    @torch.no_grad()
    def start_local(self) -> None:
        """Let tokens and image first attend to each other where their positions agree.

        Positions are random Fourier features, whose products fall with distance; but only if keys are made as queries
        are. From independent random projections this had not been found after a thousand steps: all things were
        segmented, wherever the point was.
        """
        transformer = self.mask_decoder.decoder.transformer
        crossing = [transformer.final_attn_token_to_image]
        for layer in transformer.layers:
            crossing += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        for attention in crossing:
            attention.q_proj.weight.mul_(3)
            attention.k_proj.weight.copy_(attention.q_proj.weight)

    @property
    def device(self) -> torch.device:
        return self.image_encoder.no_mem_embed.device

    def encode(self, images: Tensor) -> ImageFeatures:
        """Features of uint8 [B, 3, H, W] images that have SAM2's size."""
        return self.image_encoder((images.float() - self.mean) / self.std)

    def decode(
        self, features: ImageFeatures, image_index: Tensor, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, 4, M, M] and predicted IoU [N, 4] for points [N, 2, 2], labels [N, 2], logits [N, 1, M, M]."""
        encoder = self.mask_decoder.prompt_encoder
        sparse, dense = encoder(points=(points, labels), boxes=None, masks=mask)
        chosen = features.select(image_index)
        logits, iou, _, _ = self.mask_decoder.decoder.predict_masks(
            image_embeddings=chosen.embed,
            image_pe=self.mask_decoder.positions(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=list(chosen.high_res),
        )
        return logits.float(), iou.float()


def training_losses(model: TinySAM2, batch: Prompted, step: int) -> dict[str, Tensor]:
    """Losses of a step: every prompt once, and every other step once more with the mask that came out.

    SAM2's single mask and the best of its three others are both trained on every prompt. What tells neighbours of one
    colour apart is slow to start from masks alone, so that at first features of pixels of one segment are also drawn
    together.
    """
    device = model.device
    features = model.encode(batch.image.to(device))
    index = torch.arange(len(batch.image)).repeat_interleave(len(batch.points) // len(batch.image))
    points, labels = batch.points.to(device), batch.labels.to(device)
    target = batch.masks.to(device).float()[:, None]
    logits, iou = model.decode(features, index, points, labels)
    found = _losses(logits, iou, target)
    found["cells"] = telling_loss(model.telling(features.embed).float(), batch.cells.to(device))
    if step % 2 and step > AFFINITY_STEPS:  # a mask prompt, alone or with the points again
        alone = torch.rand(len(points), 1, device=device) < 0.5
        again, iou = model.decode(
            features, index, points, labels.masked_fill(alone, NO_POINT), logits[:, :1].detach().clamp(-32, 32)
        )
        second = _losses(again, iou, target)
        found |= {name: found[name] + second[name] for name in second}
    if step <= AFFINITY_STEPS:
        found["affinity"] = 0.5 * affinity_loss(features.high_res[0].float(), batch.segment_map.to(device))
    return found


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and dice [N, m] of logits [N, m, M, M] against masks [N, 1, H, W], averaged over M x M cells.

    Inside and outside weigh the same in half of the cross-entropy: else the empty mask is where small things end.
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
    """Of masks [N, 4, M, M] and predicted IoU [N, 4] against [N, 1, H, W]."""
    loss = mask_losses(logits, target)
    true_iou = mask_iou(logits.detach() > 0, F.adaptive_avg_pool2d(target, logits.shape[-1]) > 0.5)
    return {
        "masks": (loss[:, 0] + 0.5 * loss[:, 1:].min(dim=1).values).mean(),
        "iou": 0.5 * (iou - true_iou).abs().mean(),
    }


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of bool masks [..., H, W]; 0 where both are empty."""
    return (a & b).sum(dim=(-2, -1)) / (a | b).sum(dim=(-2, -1)).clamp(min=1)


def telling_loss(told: Tensor, cells: Tensor) -> Tensor:
    """What cells say of their own place [B, 2, S, S] and of their segment [B, DESCRIBED, S, S] against the truth.

    Args:
        told: [B, 2 + DESCRIBED, S, S].
        cells: of `Prompted`, [B, DESCRIBED + 1, S, S].
    """
    side = told.shape[-1]
    along = (torch.arange(side, device=told.device) + 0.5) / side
    place = torch.stack(torch.meshgrid(along, along, indexing="xy"))
    own = (told[:, :2] - place).abs().mean()
    weight = cells[:, -1]
    box = (told[:, 2:6] - cells[:, :4]).abs().mean(dim=1)
    form = F.binary_cross_entropy_with_logits(told[:, 6:], cells[:, 4:-1], reduction="none").mean(dim=1)
    return own + ((2 * box + form) * weight).sum() / weight.sum().clamp(min=1)


def affinity_loss(features: Tensor, segment_map: Tensor, pairs: int = 2048) -> Tensor:
    """Whether two near pixels belong to one segment, from the likeness of their features.

    Args:
        features: [B, c, M, M].
        segment_map: [B, H, W]; 0 is void and left out.
        pairs: of each image.
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


@torch.no_grad()
def evaluate(
    model: TinySAM2, world: World, seed: int, scenes: int, kind: str, batch_size: int = 10
) -> dict[str, float]:
    """Mean IoU of things and of stuff from one innermost point or one exact box, and how far the IoU head is off."""
    data = PromptedScenes(world, seed, 6, kind)
    found: dict[str, list[Any]] = {"iou": [], "score error": []}
    for start in range(0, scenes, batch_size):
        batch = collate([data[i] for i in range(start, min(start + batch_size, scenes))])
        features = model.encode(batch.image.to(model.device))
        index = torch.arange(len(batch.image)).repeat_interleave(6)
        logits, scores = model.decode(features, index, batch.points.to(model.device), batch.labels.to(model.device))
        full = F.interpolate(logits[:, :1], batch.masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
        iou = mask_iou(full.cpu(), batch.masks)
        found["iou"].append(iou)
        found["score error"].append((scores[:, 0].cpu() - iou).abs())
    return {name: torch.cat(values).mean().item() for name, values in found.items()}
