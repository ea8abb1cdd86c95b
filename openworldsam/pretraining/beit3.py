"""Training of a tiny BEiT-3 as EVF-SAM trains it: the embedding of a text and an image points at a region.

Shapes: B images, N texts of the whole batch (sorted by image), n texts of an image, L tokens of a text, D width,
G patches along a side, H = W scene size.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from openworldsam.data.shapes import Scene, World, expressions, render, thing_name
from openworldsam.modeling.prompt_encoders.beit3 import BEiT3PromptEncoder
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import EOS_ID, PAD_ID
from openworldsam.pretraining.describe import NUMBERS, POINT, describe_segments, description_loss
from openworldsam.pretraining.loop import in_batches
from openworldsam.utils.files import save_atomically

SEEING_STEPS = 2500
"""First steps, which train with images alone; BEiT-3 began with masked images and texts."""


class Described(NamedTuple):
    """An image with n texts.

    image: uint8 [3, H, W].
    texts: n texts; each refers to one segment, or a name to several.
    masks: bool [n, H, W] of these regions.
    segments: float [n, NUMBERS + 1], descriptions and weights of the regions; weight 0 for several segments.
    cells: float [G, G, NUMBERS + 1], the same for the segment in each patch.
    """

    image: Tensor
    texts: list[str]
    masks: Tensor
    segments: Tensor
    cells: Tensor


def texts_by_region(scene: Scene) -> dict[tuple[int, ...], tuple[str, ...]]:
    """Return the texts that refer to each set of segment ids, with and without their article.

    They are expressions for single things, names of stuff, and names that several things share, which refer to all.
    """
    texts: dict[tuple[int, ...], tuple[str, ...]] = {(id_,): found for id_, found in expressions(scene).items()}
    named: dict[str, list[int]] = {}
    for segment in scene.segments:
        names = (segment.name, thing_name(segment.colour, segment.name)) if segment.colour else (segment.name,)
        for name in names:
            named.setdefault(name, []).append(segment.id)
        if not segment.is_thing:
            texts[(segment.id,)] = (f"the {segment.name}",)
    for name, ids in named.items():
        if len(ids) > 1:
            texts[tuple(ids)] = (*texts.get(tuple(ids), ()), f"the {name}")
    return {ids: (*found, *(text.removeprefix("the ") for text in found)) for ids, found in texts.items()}


class DescribedScenes(Dataset[Described]):
    """Scenes with texts, each of which refers to a region.

    Args:
        world: world of the scenes, with things of all kinds.
        seed: seed of the scenes and of the texts.
        num_texts: texts per scene.
        grid: G, patches along a side of BEiT-3's input.
    """

    def __init__(self, world: World, seed: int, num_texts: int, grid: int) -> None:
        self.world, self.seed, self.num_texts, self.grid = world, seed, num_texts, grid

    def __getitem__(self, index: int) -> Described:
        scene = render(self.world, self.seed, index, "all")
        rng = np.random.default_rng([self.seed, index, 78])
        texts = texts_by_region(scene)
        table = describe_segments(scene)
        regions = list(texts)
        weights = np.array([table[ids[0], -1] for ids in regions])
        chosen = [regions[i] for i in rng.choice(len(regions), self.num_texts, p=weights / weights.sum())]
        # several segments have no common description
        told = [table[ids[0]] if len(ids) == 1 else np.zeros_like(table[0]) for ids in chosen]
        centres = ((np.arange(self.grid) + 0.5) * self.world.size / self.grid).astype(int)
        return Described(
            torch.from_numpy(scene.image).permute(2, 0, 1),
            [str(rng.choice(texts[ids])) for ids in chosen],
            torch.from_numpy(np.stack([np.isin(scene.segment_map, ids) for ids in chosen])),
            torch.from_numpy(np.stack(told)),
            torch.from_numpy(table[scene.segment_map[np.ix_(centres, centres)]]),
        )


def collate(examples: list[Described]) -> Described:
    """Stack B examples: image and cells [B, ...], the others over all texts [N, ...]."""
    images, texts, masks, segments, cells = zip(*examples, strict=True)
    flat = [text for group in texts for text in group]
    return Described(torch.stack(images), flat, torch.cat(masks), torch.cat(segments), torch.stack(cells))


class PointingBEiT3(nn.Module):
    """BEiT-3 with the linear heads that train it; the heads are discarded afterwards.

    From every patch they predict whether the region covers it, and the description of the patch's segment (in place of
    BEiT-3's masked images). From the embedding they predict the region's share of each grid cell, its description, and
    the tokens of the text (in place of BEiT-3's masked texts).
    """

    def __init__(self, encoder: BEiT3PromptEncoder) -> None:
        super().__init__()
        self.prompt_encoder = encoder.requires_grad_(True)
        width = encoder.embed_dim
        self.grid = encoder.image_size // encoder.patch_size
        self.patch_head = nn.Linear(width, 4)
        self.patch_telling = nn.Linear(width, NUMBERS)
        self.place_head = nn.Linear(width, self.grid**2)
        self.telling = nn.Linear(width, NUMBERS)
        self.words = nn.Linear(width, encoder.beit3.text_embed.num_embeddings)

    @property
    def device(self) -> torch.device:
        return self.patch_head.weight.device

    def forward(self, images: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode images with texts.

        Args:
            images: uint8 [B, 3, H, W].
            ids: tokens [N, L], N / B texts per image; None for images alone, then N = B.

        Returns:
            embeddings [N, D], and patches [N, G * G, D] before the last layer, in which the embedding can gather what
            they hold.
        """
        encoder = self.prompt_encoder
        inputs = torch.stack([encoder.preprocess(image) for image in images])
        padding = None
        if ids is not None:
            inputs, padding = inputs.repeat_interleave(len(ids) // len(images), dim=0), ids == PAD_ID
        layers: list[Tensor] = []
        hook = encoder.beit3.encoder.layers[-2].register_forward_hook(lambda *args: layers.append(args[2][0]))
        output = encoder.beit3(textual_tokens=ids, visual_tokens=inputs, text_padding_position=padding)
        hook.remove()
        return output["encoder_out"][:, 0], layers[0][:, 1 : 1 + self.grid**2]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [N, L] on the model's device."""
        return self.prompt_encoder.tokenizer(texts).to(self.device)


def training_losses(model: PointingBEiT3, batch: Described, step: int) -> dict[str, Tensor]:
    """Return the losses of a step: during SEEING_STEPS of the patches without text, then of every head."""
    device = model.device
    cells = batch.cells.flatten(1, 2).to(device)
    if step <= SEEING_STEPS:
        _, patches = model(batch.image.to(device), None)
        return {"cells": _telling_loss(model.patch_telling(patches).float(), cells)}
    ids, target = model.tokenize(batch.texts), batch.masks.to(device).float()[:, None]
    embeddings, patches = model(batch.image.to(device), ids)
    quarters = F.adaptive_avg_pool2d(target, 2 * model.grid)  # four per patch
    blocks = F.pixel_unshuffle(quarters, 2).flatten(2).transpose(1, 2)
    place = F.adaptive_avg_pool2d(target, model.grid).flatten(1)
    place = place / place.sum(dim=1, keepdim=True)
    weight = 1 / blocks.mean(dim=(1, 2), keepdim=True).clamp(min=0.02) ** 0.5
    covered = F.binary_cross_entropy_with_logits(model.patch_head(patches).float(), blocks, reduction="none")
    pieces = torch.zeros(len(ids), model.words.out_features, device=device).scatter_(1, ids, 1)[:, EOS_ID + 1 :]
    words = model.words(embeddings).float()[:, EOS_ID + 1 :]
    first_patches = patches[:: len(ids) // len(batch.image)]  # with the first text of each image
    return {
        "patches": (weight * covered).mean(),
        "place": F.cross_entropy(model.place_head(embeddings).float(), place),
        "words": 5 * F.binary_cross_entropy_with_logits(words, pieces),
        "segments": _telling_loss(model.telling(embeddings).float(), batch.segments.to(device)),
        "cells": _telling_loss(model.patch_telling(first_patches).float(), cells),
    }


def _telling_loss(told: Tensor, truth: Tensor) -> Tensor:
    """Return `description_loss` plus the error of the innermost point."""
    weight = truth[..., -1]
    point = (told[..., POINT] - truth[..., POINT]).abs().mean(dim=-1)
    return description_loss(told, truth) + 2 * (point * weight).sum() / weight.sum().clamp(min=1)


@torch.no_grad()
def validate(model: PointingBEiT3, world: World, seed: int, scenes: int, batch_size: int = 10) -> dict[str, float]:
    """Return how often the patch that an embedding points at lies in the region, by kind of text."""
    data = DescribedScenes(world, seed, 4, model.grid)
    found: dict[str, list[float]] = defaultdict(list)
    for batch in in_batches(data, collate, scenes, batch_size):
        embeddings, _ = model(batch.image.to(model.device), model.tokenize(batch.texts))
        pointed = model.place_head(embeddings).argmax(dim=1).cpu()
        share = F.adaptive_avg_pool2d(batch.masks.float()[:, None], model.grid).flatten(1)
        hits = share[torch.arange(len(share)), pointed] > 0.25
        for text, hit in zip(batch.texts, hits.tolist(), strict=True):
            found[_kind(text, world)].append(hit)
    return {kind: float(np.mean(values)) for kind, values in sorted(found.items())}


def _kind(text: str, world: World) -> str:
    words = text.removeprefix("the ").split()
    if words[0] in world.textures:
        return "stuff"
    if words[0].endswith("est") or words[0].endswith("most"):
        return "superlative"
    return "name" if words[-1] in world.shapes and len(words) <= 2 else "relation"


def train_tokenizer(path: Path, texts: Iterable[str], vocab_size: int) -> None:
    """Train a sentencepiece model on texts, with a vocabulary of at most `vocab_size` pieces, and save it."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=buffer,
        model_type="bpe",  # keeps words whole; the default splits even the commonest
        vocab_size=vocab_size - 1,  # BEiT-3's ids are shifted by one
        hard_vocab_limit=False,
        minloglevel=2,
    )
    save_atomically(path, lambda partial: partial.write_bytes(buffer.getvalue()))
