"""Contrastive training of a tiny CLIP: each image of a batch finds its caption, and each caption its image (Table 4).

Shapes: B images with a caption each, L tokens of a caption, E width of the space that images and texts share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from openworldsam.data.shapes import World, render
from openworldsam.modeling.prompt_encoders.library import import_library
from openworldsam.pretraining.beit3 import texts_by_region
from openworldsam.pretraining.loop import Trainee

MOST_TEXTS = 4
"""Most texts of a caption; the fewest is one."""
VOCABULARY = 512
"""Limit of the tokenizer's vocabulary; the texts of the Shapes world need fewer."""
WIDTH, LAYERS, HEADS, POSITIONS = 160, 4, 5, 64
"""Sizes of both towers, which together have as many parameters as the tiny BEiT-3, within 10 %."""


class Captioned(NamedTuple):
    """An image uint8 [3, H, W] and its caption; a batch has a tensor [B, 3, H, W] and a list of B."""

    image: Tensor
    caption: str


class CaptionedScenes(Dataset[Captioned]):
    """Scenes of some worlds in turn, with things of all kinds; a caption joins some of the texts that name regions."""

    def __init__(self, worlds: Sequence[World], seed: int) -> None:
        self.worlds, self.seed = worlds, seed

    def __getitem__(self, index: int) -> Captioned:
        scene = render(self.worlds[index % len(self.worlds)], self.seed, index, "all")
        rng = np.random.default_rng([self.seed, index, 79])
        groups = list(texts_by_region(scene).values())
        chosen = rng.permutation(len(groups))[: rng.integers(1, MOST_TEXTS + 1)]
        texts = (groups[group][rng.integers(len(groups[group]))] for group in chosen)
        return Captioned(torch.from_numpy(scene.image).permute(2, 0, 1), ", ".join(texts))


def write_untrained(folder: Path, image_size: int, patch_size: int, texts: Iterable[str]) -> None:
    """Write preprocessor_config.json, a tokenizer trained on texts and config.json, as a published CLIP has them."""
    library = import_library("transformers")
    empty = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    # an unknown character would end a text; a last letter has a token of its own, and only captions have commas
    texts = chain(texts, [" ".join(ascii_lowercase + ",")])
    tokenizer = library.CLIPTokenizer(vocab=empty, merges=[]).train_new_from_iterator(texts, VOCABULARY)
    towers = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    text = {**towers, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS}
    vision = {**towers, "image_size": image_size, "patch_size": patch_size}
    side = {"height": image_size, "width": image_size}
    library.CLIPImageProcessor(size=side, do_center_crop=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # last: a folder without it is incomplete, and written again
    library.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH).save_pretrained(folder)


class ContrastiveCLIP(Trainee):
    """CLIP and the temperature of its contrastive loss.

    Args:
        encoder: the late-fusion prompt encoder, which holds both towers and prepares images and texts.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.logit_scale = torch.nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def similarity(self, batch: Captioned) -> Tensor:
        """Return the logits [B, B] of image i and caption j."""
        images = torch.stack([self.encoder.preprocess(image) for image in batch.image.to(self.device)])
        ids, _ = self.encoder.tokenize(batch.caption)
        embeddings = self.encoder.encode_texts(self.encoder.encode_images(images), ids.to(self.device), None)
        texts, seen = embeddings.float().chunk(2, dim=1)  # late fusion: the text beside the image
        return self.logit_scale.clamp(max=np.log(100)).exp() * F.normalize(seen, dim=1) @ F.normalize(texts, dim=1).T

    def losses(self, batch: Captioned, step: int) -> dict[str, Tensor]:
        """Return the contrastive loss: each image chooses among the captions, each caption among the images."""
        logits = self.similarity(batch)
        own = torch.arange(len(logits), device=self.device)
        return {"contrast": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}

    def scores(self, batch: Captioned) -> dict[str, Tensor]:
        """Return for each caption whether its own image is the nearest of the batch."""
        logits = self.similarity(batch)
        return {"image of the caption": (logits.argmax(dim=0).cpu() == torch.arange(len(logits))).float()}
