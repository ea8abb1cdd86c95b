"""A tiny BEiT-3, trained as EVF-SAM trains it: a text about an image points at one region. Nothing else is asked of it.

Shapes: B images, N texts of the whole batch (sorted by image), D width, G patches along a side, V pieces of the
vocabulary, H = W = side of a scene.
"""

from __future__ import annotations

import io
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
from openworldsam.modeling.prompt_encoders.tokenizer import EOS_ID, PAD_ID
from openworldsam.pretraining.describe import NUMBERS, POINT, describe_segments, description_loss
from openworldsam.utils.files import save_atomically

SEEING_STEPS = 2500
"""Steps of images alone, before the texts come. BEiT-3 began with masked images and texts."""


class Described(NamedTuple):
    """An image and texts about it.

    image: uint8 [3, H, W].
    texts: n of them, each true of one segment or, a name, of several.
    masks: bool [n, H, W], these regions.
    segments: float [n, NUMBERS + 1], their descriptions, and how much each counts; several count nothing.
    cells: float [G, G, NUMBERS + 1], the same for the segment that each patch lies in.
    """

    image: Tensor
    texts: list[str]
    masks: Tensor
    segments: Tensor
    cells: Tensor


def describe(scene: Scene) -> dict[tuple[int, ...], tuple[str, ...]]:
    """Texts by the ids of their segments, with and without their article.

    Expressions for one thing each, names for stuff, and the names that several things have, which point at all of them.
    """
    texts: dict[tuple[int, ...], tuple[str, ...]] = {(id_,): own for id_, own in expressions(scene).items()}
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
    return {ids: (*own, *(text.removeprefix("the ") for text in own)) for ids, own in texts.items()}


class DescribedScenes(Dataset[Described]):
    """Scenes with texts that point at a region each.

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
        table = describe_segments(scene)
        regions = list(texts)
        weights = np.array([table[ids[0], -1] for ids in regions])
        chosen = [regions[i] for i in rng.choice(len(regions), self.num_texts, p=weights / weights.sum())]
        # nothing can be told of several as of one
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
    listed = [text for own in texts for text in own]
    return Described(torch.stack(images), listed, torch.cat(masks), torch.cat(segments), torch.stack(cells))


class PointingBEiT3(nn.Module):
    """A BEiT-3, and the linear heads through which it is trained; they are thrown away.

    From every patch: whether the region covers it, and what can be said of the segment that it lies in (BEiT-3 itself
    learnt to see from masked images). From the embedding: the region's shares in a grid, what can be said of it, and
    which pieces the text was made of (BEiT-3 itself learnt its words from masked texts).
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
        """Images uint8 [B, 3, H, W], texts [N, L] to embeddings [N, D] and, one layer earlier, patches [N, G * G, D].

        Images alone, without texts, count as N = B.
        What the patches know by then, the embedding can gather in the last layer.
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
        """Token ids [N, L] on the model's device."""
        return self.prompt_encoder.tokenizer(texts).to(self.device)


def training_losses(model: PointingBEiT3, batch: Described, step: int) -> dict[str, Tensor]:
    """Losses of a step: what patches tell of images alone; then one for each head."""
    device = model.device
    cells = batch.cells.flatten(1, 2).to(device)
    if step <= SEEING_STEPS:
        _, patches = model(batch.image.to(device), None)
        return {"cells": _telling_loss(model.patch_telling(patches).float(), cells)}
    ids, target = model.tokenize(batch.texts), batch.masks.to(device).float()[:, None]
    embeddings, patches = model(batch.image.to(device), ids)
    quarters = F.adaptive_avg_pool2d(target, 2 * model.grid)  # four to a patch
    blocks = F.pixel_unshuffle(quarters, 2).flatten(2).transpose(1, 2)
    place = F.adaptive_avg_pool2d(target, model.grid).flatten(1)
    place = place / place.sum(dim=1, keepdim=True)
    weight = 1 / blocks.mean(dim=(1, 2), keepdim=True).clamp(min=0.02) ** 0.5
    covered = F.binary_cross_entropy_with_logits(model.patch_head(patches).float(), blocks, reduction="none")
    pieces = torch.zeros(len(ids), model.words.out_features, device=device).scatter_(1, ids, 1)[:, EOS_ID + 1 :]
    words = model.words(embeddings).float()[:, EOS_ID + 1 :]
    own_patches = patches[:: len(ids) // len(batch.image)]  # those of the first text of each image
    return {
        "patches": (weight * covered).mean(),
        "place": F.cross_entropy(model.place_head(embeddings).float(), place),
        "words": 5 * F.binary_cross_entropy_with_logits(words, pieces),
        "segments": _telling_loss(model.telling(embeddings).float(), batch.segments.to(device)),
        "cells": _telling_loss(model.patch_telling(own_patches).float(), cells),
    }


def _telling_loss(told: Tensor, truth: Tensor) -> Tensor:
    """`description_loss`, and how far the innermost point is off."""
    weight = truth[..., -1]
    point = (told[..., POINT] - truth[..., POINT]).abs().mean(dim=-1)
    return description_loss(told, truth) + 2 * (point * weight).sum() / weight.sum().clamp(min=1)


@torch.no_grad()
def evaluate(model: PointingBEiT3, world: World, seed: int, scenes: int, batch_size: int = 10) -> dict[str, float]:
    """How often the patch that an embedding points at lies in the region: of stuff, names, superlatives, relations."""
    data = DescribedScenes(world, seed, 4, model.grid)
    found: dict[str, list[float]] = {}
    for start in range(0, scenes, batch_size):
        batch = collate([data[i] for i in range(start, min(start + batch_size, scenes))])
        embeddings, _ = model(batch.image.to(model.device), model.tokenize(batch.texts))
        pointed = model.place_head(embeddings).argmax(dim=1).cpu()
        share = F.adaptive_avg_pool2d(batch.masks.float()[:, None], model.grid).flatten(1)
        hits = share[torch.arange(len(share)), pointed] > 0.25
        for text, hit in zip(batch.texts, hits.tolist(), strict=True):
            found.setdefault(_family(text, world), []).append(hit)
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
        model_type="bpe",  # words become pieces; the default cuts the commonest up
        vocab_size=vocab_size - 1,  # BEiT-3's ids are one higher
        hard_vocab_limit=False,
        minloglevel=2,
    )
    save_atomically(path, lambda partial: partial.write_bytes(buffer.getvalue()))
