"""A tiny BEiT-3, trained as EVF-SAM trains it: a text about an image points the frozen SAM2 at one region.

Shapes: B images, N texts of the whole batch (sorted by image), D width, C width of SAM2, G patches along a side,
H = W = side of a scene.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from openworldsam.checkpoint.writing import save_atomically
from openworldsam.data.shapes import Scene, World, expressions, render
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.modeling.prompt_encoders.beit3 import BEiT3PromptEncoder
from openworldsam.modeling.prompt_encoders.tokenizer import PAD_ID
from openworldsam.pretraining.sam2 import DESCRIBED, describe_cells, mask_iou, mask_losses, telling_loss

PATCH = 16
"""Pixels along a side of BEiT-3's patches."""
HEADS_ONLY_STEPS = 20_000
"""Steps before SAM2's masks join: until then an embedding does not yet say where."""


class Described(NamedTuple):
    """An image and texts about it.

    image: uint8 [3, H, W].
    texts: n of them, each true of one segment.
    masks: bool [n, H, W], the segments.
    cells: float [DESCRIBED + 1, G, G], what each patch must tell of the segment that it lies in.
    """

    image: Tensor
    texts: list[str]
    masks: Tensor
    cells: Tensor


def describe(scene: Scene) -> dict[int, tuple[str, ...]]:
    """Texts by segment id, with and without their article: expressions for things, names for stuff."""
    named = {segment.id: (f"the {segment.name}",) for segment in scene.segments if not segment.is_thing}
    with_article = {**expressions(scene), **named}
    return {id_: (*texts, *(text.removeprefix("the ") for text in texts)) for id_, texts in with_article.items()}


class DescribedScenes(Dataset[Described]):
    """Scenes with texts that are true of one segment each.

    Args:
        world: of the scenes, with things of all kinds.
        seed: of the scenes and of what is drawn.
        num_texts: of a scene.
        grid: patches along a side of BEiT-3's view.
    """

    def __init__(self, world: World, seed: int, num_texts: int, grid: int) -> None:
        self.world, self.seed, self.num_texts, self.grid = world, seed, num_texts, grid

    def __getitem__(self, index: int) -> Described:
        scene = render(self.world, self.seed, index, "all")
        rng = np.random.default_rng([self.seed, index, 78])
        texts = describe(scene)
        is_thing = {segment.id: segment.is_thing for segment in scene.segments}
        weights = np.array([4.0 if is_thing[i] else 1.0 for i in texts])
        chosen = rng.choice(list(texts), self.num_texts, p=weights / weights.sum())
        return Described(
            torch.from_numpy(scene.image).permute(2, 0, 1),
            [str(rng.choice(texts[i])) for i in chosen],
            torch.from_numpy(np.stack([scene.segment_map == i for i in chosen])),
            torch.from_numpy(describe_cells(scene, self.world.size // self.grid)),
        )


def collate(examples: list[Described]) -> Described:
    """Stack B examples: image and cells [B, ...], N texts, masks [N, H, W]."""
    images, texts, masks, cells = zip(*examples, strict=True)
    listed = [text for own in texts for text in own]
    return Described(torch.stack(images), listed, torch.cat(masks), torch.stack(cells))


class PointingBEiT3(nn.Module):
    """The prompt encoder of an `OpenWorldSAM`, and what it is trained through: EVF-SAM's projector into frozen SAM2.

    Three linear heads help it to begin and are thrown away: from every patch, whether the region covers it; from every
    patch, what segment it lies in (as in the tiny SAM2; BEiT-3 itself learnt to see from masked images); and from the
    embedding, the region's shares in a coarse grid, so that the embedding says where.
    """

    def __init__(self, model: OpenWorldSAM) -> None:
        super().__init__()
        assert isinstance(model.prompt_encoder, BEiT3PromptEncoder)
        self.prompt_encoder = model.prompt_encoder.requires_grad_(True)
        width, self.grid = model.prompt_encoder.embed_dim, model.prompt_encoder.image_size // PATCH
        self.projector = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, model.image_encoder.width)
        )
        self.patch_head = nn.Linear(width, 4)
        self.telling = nn.Linear(width, 2 + DESCRIBED)
        self.place_head = nn.Linear(width, self.grid**2)
        self._frozen = (model,)  # in a tuple: not a part of this module, so neither trained nor saved

    @property
    def frozen(self) -> OpenWorldSAM:
        """The model whose SAM2 answers."""
        return self._frozen[0]

    def forward(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] images and N texts to embeddings [N, D] and, one layer earlier, patches [N, G * G, D].

        What the patches know by then, the embedding can gather in the last layer.
        """
        encoder = self.prompt_encoder
        ids = encoder.tokenizer(texts).to(images.device)
        index = torch.arange(len(images), device=images.device).repeat_interleave(len(texts) // len(images))
        inputs = torch.stack([encoder.preprocess(image) for image in images])
        layers: list[Tensor] = []
        hook = encoder.beit3.encoder.layers[-2].register_forward_hook(lambda *args: layers.append(args[2][0]))
        output = encoder.beit3(textual_tokens=ids, visual_tokens=inputs[index], text_padding_position=ids == PAD_ID)
        hook.remove()
        return output["encoder_out"][:, 0], layers[0][:, 1 : 1 + self.grid**2]

    def decode(self, images: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """All four masks of SAM2 and its scores for N embeddings: [N, 4, M, M], [N, 4]."""
        features = self.frozen.encode_images(list(images))
        chosen = features.select(torch.arange(len(images)).repeat_interleave(len(embeddings) // len(images)))
        decoder = self.frozen.mask_decoder
        logits, iou, _, _ = decoder.decoder.predict_masks(
            image_embeddings=chosen.embed,
            image_pe=decoder.positions(),
            sparse_prompt_embeddings=self.projector(embeddings)[:, None],
            dense_prompt_embeddings=decoder.prompt_encoder.no_mask_embed.weight[:, :, None, None],
            repeat_image=False,
            high_res_features=list(chosen.high_res),
        )
        return logits.float(), iou.float()


def training_losses(model: PointingBEiT3, batch: Described, step: int) -> dict[str, Tensor]:
    """Losses of a step: of the three heads, and then of SAM2's single mask too."""
    device = model.patch_head.weight.device
    images, target = batch.image.to(device), batch.masks.to(device).float()[:, None]
    embeddings, patches = model(images, batch.texts)
    quarters = F.adaptive_avg_pool2d(target, 2 * model.grid)  # four to a patch
    blocks = F.pixel_unshuffle(quarters, 2).flatten(2).transpose(1, 2)
    place = F.adaptive_avg_pool2d(target, model.grid).flatten(1)
    place = place / place.sum(dim=1, keepdim=True)
    weight = 1 / blocks.mean(dim=(1, 2), keepdim=True).clamp(min=0.02) ** 0.5
    covered = F.binary_cross_entropy_with_logits(model.patch_head(patches).float(), blocks, reduction="none")
    found = {
        "patches": (weight * covered).mean(),
        "place": F.cross_entropy(model.place_head(embeddings).float(), place),
        "cells": telling_loss(_as_map(model.telling(patches[:: len(patches) // len(images)])), batch.cells.to(device)),
    }
    if step <= HEADS_ONLY_STEPS:
        return found
    logits, _ = model.decode(images, embeddings)
    found["masks"] = mask_losses(logits[:, :1], target).mean()
    return found


def _as_map(patches: Tensor) -> Tensor:
    """[B, G * G, n] -> float32 [B, n, G, G]."""
    side = math.isqrt(patches.shape[1])
    return patches.float().transpose(1, 2).unflatten(2, (side, side))


@torch.no_grad()
def evaluate(model: PointingBEiT3, world: World, seed: int, scenes: int, batch_size: int = 10) -> dict[str, float]:
    """Mean IoU of the regions that texts point at: of stuff, and of things by name, superlative, relation."""
    data = DescribedScenes(world, seed, 4, model.grid)
    found: dict[str, list[float]] = {}
    for start in range(0, scenes, batch_size):
        batch = collate([data[i] for i in range(start, min(start + batch_size, scenes))])
        images = batch.image.to(model.patch_head.weight.device)
        embeddings, _ = model(images, batch.texts)
        logits, _ = model.decode(images, embeddings)
        masks = F.interpolate(logits[:, :1], batch.masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
        for text, iou in zip(batch.texts, mask_iou(masks.cpu(), batch.masks).tolist(), strict=True):
            found.setdefault(_family(text, world), []).append(iou)
    return {family: float(np.mean(values)) for family, values in sorted(found.items())}


def _family(text: str, world: World) -> str:
    words = text.removeprefix("the ").split()
    if words[0] in world.textures:
        return "stuff"
    if words[0].endswith("est") or words[0].endswith("most"):
        return "superlative"
    return "name" if words[-1] in world.shapes and len(words) <= 2 else "relation"


def save_tokenizer(path: Path, texts: Iterable[str], vocab_size: int = 512) -> None:
    """Train a sentencepiece model on texts; its vocabulary is as large as they need, at most `vocab_size`."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=buffer,
        vocab_size=vocab_size - 1,  # BEiT-3's ids are one higher
        hard_vocab_limit=False,
        minloglevel=2,
    )
    save_atomically(path, lambda partial: partial.write_bytes(buffer.getvalue()))
