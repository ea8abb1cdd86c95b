"""The interface of a prompt encoder, and the registry that the config chooses from.

Shapes: B images, P prompts of the whole batch, N prompts of a chunk, L text tokens, D width of the prompt embedding,
S side of the encoder's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.utils.device import upload
from openworldsam.utils.progress import chunks

PROMPT_ENCODER_REGISTRY = Registry("PROMPT_ENCODER")
PROMPT_ENCODER_REGISTRY.__doc__ = "Prompt encoders by name; each is built from the whole config."


class PromptEncoder(nn.Module, ABC):
    """Embeds texts, each together with its image. To add one: subclass, register, name it in the config.

    All else is built from the declaration below: reading and writing weights, the feature cache, training records,
    saved models and the comparison with the paper.
    """

    component: ClassVar[Component | None] = None
    """Declaration of its weight files; None for an encoder without any, which cannot be trained."""
    settings: ClassVar[tuple[str, ...]] = (
        "INPUT.ANTIALIAS",
        "MODEL.PROMPT_ENCODER.IMAGE_SIZE",
        "MODEL.PROMPT_ENCODER.MAX_TOKENS",
        "MODEL.PROMPT_ENCODER.USE_IMAGE",
    )
    """Config keys that change the embeddings but not the weights."""
    tokenizer_name: ClassVar[str] = ""
    """Name of the tokenizer file or folder in a saved model; empty for an encoder without one."""
    paper_row: ClassVar[str] = ""
    """Row of Table 4 of the paper that it reproduces."""
    paper_sizes: ClassVar[Mapping[str, int]] = {}
    """Keys of MODEL.PROMPT_ENCODER with their values in that row."""
    embed_dim: int
    """D, MODEL.PROMPT_ENCODER.EMBED_DIM."""

    @classmethod
    def tokenizer_files(cls, path: Path) -> list[Path]:
        """List the files of a tokenizer: `path` itself, or the files in the folder `path` that are not weights."""
        if not path.is_dir():
            return [path]
        suffixes = (".json", ".model", ".spm", ".txt")
        index = ".index.json"  # of weights in shards
        return sorted(file for file in path.iterdir() if file.suffix in suffixes and not file.name.endswith(index))

    def prepare(self) -> None:
        """Read the files that the first prompt will need, such as a vocabulary, so that a missing one shows early.

        Raises:
            FileNotFoundError, ValueError: one is missing or damaged.
        """

    def word_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Embed P texts without image for the score head: the mean of each text's word embeddings, [P, D].

        Raises:
            ValueError: the encoder has none.
        """
        raise ValueError(f"{type(self).__name__} has no word embeddings, which MODEL.SCORE_HEAD needs")

    @abstractmethod
    def preprocess(self, image: Tensor) -> Tensor:
        """Bring an image, uint8 [3, H, W], to this encoder's input [3, S, S]."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] from `preprocess` as what all prompts of an image share, [B, ...].

        By default the images themselves, for encoders that read image and prompt together.
        """
        return images

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str], image_index: Tensor) -> Tensor:
        """Embed P prompts.

        Args:
            images: [B, ...] from `encode_images`.
            prompts: P texts.
            image_index: int64 [P] on the CPU, the image that each prompt asks about.

        Returns:
            [P, D]; each embedding depends on its own text and image alone.
        """


def prompt_encoder_class(cfg: CfgNode) -> type[PromptEncoder]:
    """Return the class that MODEL.PROMPT_ENCODER.NAME names.

    Raises:
        KeyError: no encoder of that name is registered.
    """
    name = cfg.MODEL.PROMPT_ENCODER.NAME
    if name not in PROMPT_ENCODER_REGISTRY:
        known = ", ".join(key for key, _ in PROMPT_ENCODER_REGISTRY)
        raise KeyError(f"no prompt encoder {name!r} (there are {known}); import the module that registers it")
    return PROMPT_ENCODER_REGISTRY.get(name)


def build_prompt_encoder(cfg: CfgNode) -> PromptEncoder:
    """Build the encoder that MODEL.PROMPT_ENCODER.NAME names.

    Raises:
        KeyError: no encoder of that name is registered.
        ValueError: its embedding is not as wide as the config says.
    """
    encoder = prompt_encoder_class(cfg)(cfg)
    if encoder.embed_dim != cfg.MODEL.PROMPT_ENCODER.EMBED_DIM:
        raise ValueError(
            f"{cfg.MODEL.PROMPT_ENCODER.NAME} gives embeddings of width {encoder.embed_dim}: set "
            f"MODEL.PROMPT_ENCODER.EMBED_DIM to it, not {cfg.MODEL.PROMPT_ENCODER.EMBED_DIM}"
        )
    return encoder


def encode_in_chunks(
    encode: Callable[[Tensor | None, Tensor, Tensor | None], Tensor],
    images: Tensor | None,
    ids: Tensor,
    lengths: Tensor,
    image_index: Tensor,
    size: int,
    device: torch.device,
) -> Tensor:
    """Encode P prompts, `size` at a time and those of similar length together, which keeps padding short.

    Args:
        encode: embeds a chunk: (the images of its prompts [N, ...] or None, ids [N, L], padding) -> [N, D]; padding is
            bool [N, L], True after a text's end, or None if all texts have L tokens.
        images: [B, ...] on the device, what all prompts of an image share; None for text alone.
        ids: [P, L] on the CPU, padded on the right.
        lengths: [P] on the CPU, tokens of each prompt.
        image_index: [P] on the CPU, the image of each prompt.
        size: N, prompts of a chunk.
        device: of the encoder.

    Returns:
        [P, D], in the order of the prompts.
    """
    order = lengths.argsort(descending=True, stable=True)
    on_device = partial(upload, device=device)
    embeddings = []
    for chunk in chunks(order.split(size), len(order), "prompt", size):
        longest = int(lengths[chunk[0]])
        padding = torch.arange(longest) >= lengths[chunk, None]
        of_prompts = None if images is None else images[on_device(image_index[chunk])]
        embeddings.append(
            encode(of_prompts, on_device(ids[chunk, :longest]), on_device(padding) if padding.any() else None)
        )
    return torch.cat(embeddings)[on_device(order.argsort())]


def clean_prompts(prompts: Sequence[str]) -> list[str]:
    """Trim a user's prompts, collapse white space within them, and keep the first of equal ones.

    Raises:
        ValueError: see `check_prompts`.
    """
    check_prompts(prompts)
    return list(dict.fromkeys(" ".join(prompt.split()) for prompt in prompts))


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise ValueError unless this is a list of texts that are not blank."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts are a list of texts, got the text {prompts!r:.80}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {index} is {type(prompt).__name__} {prompt!r:.80}; a prompt is a text")
        if not prompt.strip():
            raise ValueError(f"prompt {index} is empty: {prompt!r}")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # from undecodable bytes on a command line
            raise ValueError(f"prompt {index} is not valid Unicode: {prompt!r:.80}") from error
