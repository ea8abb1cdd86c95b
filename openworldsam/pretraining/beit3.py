"""Training of a tiny BEiT-3 as EVF-SAM trains it: the embedding of a text and an image points at a region.

Shapes: B images, N texts of the whole batch (sorted by image), n texts of an image, L tokens of a text, D width,
G patches along a side, H = W scene size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from openworldsam.data.shapes import Scene, World, colours_of, expressions, render, thing_name
from openworldsam.modeling.prompt_encoders.beit3 import BEiT3PromptEncoder
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import EOS_ID, PAD_ID
from openworldsam.pretraining.describe import NUMBERS, POINT, describe_segments, description_loss
from openworldsam.pretraining.loop import Trainee

SEEING_STEPS = 2500
"""First steps, on images alone, in place of the masked images with which BEiT-3 began."""
KINDS = {"name": 4.0, "superlative": 3.0, "relation": 3.0, "stuff": 1.0, "absent": 1.0}
"""Kinds of texts and their weights: a text's kind is drawn from those of the scene, then the text from its kind."""


class Described(NamedTuple):
    """An image with n texts; a batch has B of each tensor, and for each of the n texts a tuple of B.

    image: uint8 [3, H, W].
    texts: n texts; each refers to one segment, a name also to several or to none.
    masks: bool [n, H, W] of these regions; empty for an absent name.
    segments: float [n, NUMBERS + 1], descriptions and weights of the regions; weight 0 for none or several segments.
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
    """Scenes of some worlds in turn, with things of all kinds and texts of all `KINDS`; `grid` is G."""

    def __init__(self, worlds: Sequence[World], seed: int, num_texts: int, grid: int) -> None:
        self.worlds, self.seed, self.num_texts, self.grid = worlds, seed, num_texts, grid

    def __getitem__(self, index: int) -> Described:
        world = self.worlds[index % len(self.worlds)]
        scene = render(world, self.seed, index, "all")
        rng = np.random.default_rng([self.seed, index, 78])
        table = describe_segments(scene)
        by_kind = defaultdict[str, list[tuple[tuple[int, ...], str]]](list)
        for name in _absent(scene, world):
            by_kind["absent"].append(((), name))
        for ids, texts in texts_by_region(scene).items():
            for text in texts:
                by_kind[_kind(text, world)].append((ids, text))
        weights = np.array([KINDS[kind] for kind in by_kind])
        kinds = rng.choice(list(by_kind), self.num_texts, p=weights / weights.sum())
        chosen = [by_kind[kind][rng.integers(len(by_kind[kind]))] for kind in kinds]
        # none or several segments have no common description
        told = [table[ids[0]] if len(ids) == 1 else np.zeros_like(table[0]) for ids, _ in chosen]
        centres = ((np.arange(self.grid) + 0.5) * world.size / self.grid).astype(int)
        return Described(
            torch.from_numpy(scene.image).permute(2, 0, 1),
            [text for _, text in chosen],
            torch.from_numpy(np.stack([np.isin(scene.segment_map, ids) for ids, _ in chosen])),
            torch.from_numpy(np.stack(told)),
            torch.from_numpy(table[scene.segment_map[np.ix_(centres, centres)]]),
        )


def _absent(scene: Scene, world: World) -> list[str]:
    """Return the names of things, with and without a colour, that the scene does not show."""
    present = {segment.name for segment in scene.segments}
    present |= {thing_name(segment.colour, segment.name) for segment in scene.segments if segment.colour}
    pairs = [thing_name(colour, shape) for shape, colours in colours_of(world, "all").items() for colour in colours]
    # as many names without a colour as with one
    shapes = [shape for shape in world.shapes for _ in world.colours]
    return [name for name in (*shapes, *pairs) if name not in present]


class PointingBEiT3(Trainee):
    """BEiT-3 with the linear heads that train it; the heads are discarded afterwards.

    From every patch they predict whether the region covers it, and the description of the patch's segment (in place of
    BEiT-3's masked images). From the embedding they predict the region's share of each grid cell or that there is no
    region, its description, and the tokens of the text (in place of BEiT-3's masked texts). `world` tells the kinds of
    texts apart.
    """

    def __init__(self, encoder: BEiT3PromptEncoder, world: World) -> None:
        super().__init__()
        self.prompt_encoder, self.world = encoder.requires_grad_(True), world
        width = encoder.embed_dim
        self.grid = encoder.image_size // encoder.patch_size
        self.patch_head = nn.Linear(width, 4)
        self.patch_telling = nn.Linear(width, NUMBERS)
        self.place_head = nn.Linear(width, self.grid**2 + 1)  # the last one says that nothing is meant
        self.telling = nn.Linear(width, NUMBERS)
        self.words = nn.Linear(width, encoder.beit3.text_embed.num_embeddings)

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

    def encode_texts(self, batch: Described) -> tuple[list[str], Tensor, Tensor, Tensor]:
        """Return the N texts of a batch, their tokens [N, L], and what `forward` makes of them."""
        texts = [text for of_image in zip(*batch.texts, strict=True) for text in of_image]
        ids = self.prompt_encoder.tokenizer(texts).to(self.device)
        return texts, ids, *self(batch.image.to(self.device), ids)

    def losses(self, batch: Described, step: int) -> dict[str, Tensor]:
        """Return the losses of a step: during `SEEING_STEPS` of the patches without text, then of every head."""
        cells = batch.cells.flatten(1, 2).to(self.device)
        if step <= SEEING_STEPS:
            _, patches = self(batch.image.to(self.device), None)
            return {"cells": _telling_loss(self.patch_telling(patches).float(), cells)}
        _, ids, embeddings, patches = self.encode_texts(batch)
        target = batch.masks.flatten(0, 1).to(self.device).float()[:, None]
        quarters = F.adaptive_avg_pool2d(target, 2 * self.grid)  # four per patch
        blocks = F.pixel_unshuffle(quarters, 2).flatten(2).transpose(1, 2)
        cells_covered = F.adaptive_avg_pool2d(target, self.grid).flatten(1)
        absent = (cells_covered.sum(dim=1, keepdim=True) == 0).float()
        place = torch.cat([cells_covered, absent], dim=1)
        place = place / place.sum(dim=1, keepdim=True)
        weight = 1 / (blocks.mean(dim=(1, 2), keepdim=True) + absent[..., None]).clamp(min=0.02) ** 0.5
        covered = F.binary_cross_entropy_with_logits(self.patch_head(patches).float(), blocks, reduction="none")
        pieces = torch.zeros(len(ids), self.words.out_features, device=self.device).scatter_(1, ids, 1)
        words = self.words(embeddings).float()[:, EOS_ID + 1 :]
        first_patches = patches[:: batch.masks.shape[1]]  # with the first text of each image
        segments = batch.segments.flatten(0, 1).to(self.device)
        return {
            "patches": (weight * covered).mean(),
            "place": F.cross_entropy(self.place_head(embeddings).float(), place),
            "words": 5 * F.binary_cross_entropy_with_logits(words, pieces[:, EOS_ID + 1 :]),
            "segments": _telling_loss(self.telling(embeddings).float(), segments),
            "cells": _telling_loss(self.patch_telling(first_patches).float(), cells),
        }

    def scores(self, batch: Described) -> dict[str, Tensor]:
        """Return for each text, by its kind, whether its embedding points into the region, or nowhere for "absent"."""
        texts, _, embeddings, _ = self.encode_texts(batch)
        pointed = self.place_head(embeddings).argmax(dim=1).cpu()
        share = F.adaptive_avg_pool2d(batch.masks.flatten(0, 1).float()[:, None], self.grid).flatten(1)
        absent = share.sum(dim=1) == 0
        hits = torch.cat([share, absent[:, None].float()], dim=1)[torch.arange(len(share)), pointed] > 0.25
        kinds = defaultdict(list)
        for index, text in enumerate(texts):
            kinds["absent" if absent[index] else _kind(text, self.world)].append(index)
        return {kind: hits[indices] for kind, indices in kinds.items()}


def _telling_loss(told: Tensor, truth: Tensor) -> Tensor:
    """Return `description_loss` plus the error of the innermost point."""
    weight = truth[..., -1]
    point = (told[..., POINT] - truth[..., POINT]).abs().mean(dim=-1)
    return description_loss(told, truth) + 2 * (point * weight).sum() / weight.sum().clamp(min=1)


def _kind(text: str, world: World) -> str:
    words = text.removeprefix("the ").split()
    if words[0] in world.textures:
        return "stuff"
    if words[0].endswith("est") or words[0].endswith("most"):
        return "superlative"
    return "name" if words[-1] in world.shapes and len(words) <= 2 else "relation"
