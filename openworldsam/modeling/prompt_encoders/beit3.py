"""BEiT-3 as prompt encoder: text and image in one transformer from the first layer (paper Sec. 3, Table 4).

torchscale's modules hold the weights; the functions at the end are their forward pass, pre-norm with sub-layer norms.
They give the vector `beit3(...)["encoder_out"][:, 0]`, for which torchscale writes the attention out and computes every
token of the last layer.

Shapes: B images, P prompts of the whole batch, N prompts of a chunk, S input side, D = 1024 width, V vision tokens
(CLS, then patches), L text tokens, T = V + L tokens of a prompt (L without image).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F
from torchscale.architecture.config import EncoderConfig
from torchscale.architecture.encoder import EncoderLayer
from torchscale.component.multihead_attention import MultiheadAttention
from torchscale.component.multiway_network import MultiwayNetwork
from torchscale.model.BEiT3 import BEiT3

from openworldsam.modeling.components import Component, StateDict
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY, PromptEncoder, encode_in_chunks
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import EOS_ID, PAD_ID, BEiT3Tokenizer
from openworldsam.utils.device import upload

logger = logging.getLogger(__name__)

POSITIONS = 1024
"""Length of the text position table; its first two entries are never used (a Fairseq convention)."""
WIDTHS = {768: "base", 1024: "large"}
"""Names of the public sizes by width."""


def resize_for_beit3(image: Tensor, size: int, antialias: bool = False) -> Tensor:
    """Squash an image, uint8 [3, H, W], bicubically to BEiT-3's input, float [3, S, S], with S = `size`.

    Its values are about -1..1: bicubic interpolation overshoots a little.
    """
    resized = F.interpolate(
        image[None].float() / 255, (size, size), mode="bicubic", align_corners=False, antialias=antialias
    )
    return (resized[0] - 0.5) / 0.5


def resize_positions(table: Tensor, length: int) -> Tensor:
    """Fit the vision positions to another image size, bicubically: [3 + n * n, D] -> [3 + m * m, D] of this length.

    The table holds two unused entries, the CLS token, n x n patches; one of another form is returned unchanged.
    """
    if table.ndim != 2 or len(table) == length:
        return table
    old, new = math.isqrt(max(0, len(table) - 3)), math.isqrt(length - 3)
    if not old or old * old + 3 != len(table):
        return table
    grid = table[3:].T.reshape(1, -1, old, old)
    resized = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    logger.info("BEiT-3 positions interpolated from %d x %d to %d x %d patches", old, old, new, new)
    return torch.cat([table[:3], resized[0].flatten(1).T])


def _fit(state: StateDict, expected: StateDict) -> None:
    name = "prompt_encoder.beit3.encoder.embed_positions.A.weight"
    if name in state and name in expected:
        state[name] = resize_positions(state[name], len(expected[name]))


def _advice(public: StateDict) -> str:
    name = "beit3.encoder.layer_norm.A.weight"
    width = public[name].numel() if name in public else 0
    return (
        f"It holds a BEiT-3 of width {width} ({WIDTHS.get(width, 'unknown')}); "
        "configs/encoders/beit3_base.yaml configures base, the default is large."
    )


@PROMPT_ENCODER_REGISTRY.register()
class BEiT3PromptEncoder(PromptEncoder):
    """Reads a prompt's embedding from BEiT-3's first output token.

    With the image that token is the vision CLS, which attends to the text in every layer; without, the text's `<s>`.
    The arguments are the keys of MODEL.PROMPT_ENCODER, which `config.py` explains, INPUT.ANTIALIAS, and whether to use
    torch.compile for a chunk of prompts.
    """

    component = Component(
        name="beit3",
        prefixes=(("beit3.", "prompt_encoder.beit3."),),
        recognised_by="beit3.",
        layout="BEiT-3",
        not_read=r"[^.]*head|pooler\.|logit_scale",  # heads of the pre-trained, retrieval and fine-tuned variants
        hint="(openworldsam download beit3_large, or evf_sam2_multitask as the released code uses)",
        fit=_fit,
        advice=_advice,
    )
    tokenizer_name = "beit3.spm"
    paper_row = "BEiT-3-Large"
    paper_sizes: ClassVar[Mapping[str, int]] = {
        "IMAGE_SIZE": 224,
        "PATCH_SIZE": 16,
        "EMBED_DIM": 1024,
        "NUM_LAYERS": 24,
        "NUM_HEADS": 16,
        "FFN_DIM": 4096,
        "VOCAB_SIZE": 64010,
    }

    @configurable
    def __init__(
        self,
        *,
        tokenizer: str | Path = "weights/beit3.spm",
        image_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 1024,
        num_layers: int = 24,
        num_heads: int = 16,
        ffn_dim: int = 4096,
        vocab_size: int = 64010,
        max_tokens: int = 512,
        use_image: bool = True,
        chunk: int = 32,
        antialias: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if not 3 <= max_tokens <= POSITIONS - 2:
            raise ValueError(f"MODEL.PROMPT_ENCODER.MAX_TOKENS is 3 to {POSITIONS - 2}, got {max_tokens}")
        if chunk < 1:
            raise ValueError(f"MODEL.PROMPT_ENCODER.CHUNK must be at least 1, got {chunk}")
        sizes = (("IMAGE_SIZE", image_size, "PATCH_SIZE", patch_size), ("EMBED_DIM", embed_dim, "NUM_HEADS", num_heads))
        for key, size, other, step in sizes:
            if step < 1 or size < step or size % step:
                raise ValueError(f"MODEL.PROMPT_ENCODER.{key} must be a multiple of {other}, got {size} and {step}")
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.patch_size = patch_size
        self.use_image = use_image
        self.chunk = chunk
        self._first_token = torch.compile(first_token, dynamic=True) if compiled else first_token
        self.antialias = antialias
        self.max_tokens = max_tokens
        self.tokenizer_file = tokenizer
        self.beit3 = BEiT3(
            EncoderConfig(
                img_size=image_size,
                patch_size=patch_size,
                vocab_size=vocab_size,
                multiway=True,
                layernorm_embedding=False,
                normalize_output=True,
                no_output_layer=True,
                drop_path_rate=0,
                encoder_embed_dim=embed_dim,
                encoder_attention_heads=num_heads,
                encoder_ffn_embed_dim=ffn_dim,
                encoder_layers=num_layers,
                max_source_positions=POSITIONS,
            )
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        keys = ["TOKENIZER", "IMAGE_SIZE", "PATCH_SIZE", "EMBED_DIM", "NUM_LAYERS", "NUM_HEADS", "FFN_DIM"]
        keys += ["VOCAB_SIZE", "MAX_TOKENS", "USE_IMAGE", "CHUNK"]
        copied = {key.lower(): cfg.MODEL.PROMPT_ENCODER[key] for key in keys}
        return {**copied, "compiled": cfg.MODEL.COMPILE, "antialias": cfg.INPUT.ANTIALIAS}

    @cached_property
    def tokenizer(self) -> BEiT3Tokenizer:
        """The tokenizer, read from its file at first use."""
        return BEiT3Tokenizer(self.tokenizer_file, self.max_tokens, self.beit3.text_embed.num_embeddings)

    def prepare(self) -> None:
        self.tokenizer  # noqa: B018

    def preprocess(self, image: Tensor) -> Tensor:
        return resize_for_beit3(image, self.image_size, self.antialias)

    def forward(self, images: Tensor, prompts: Sequence[str], image_index: Tensor) -> Tensor:
        return self.encode_tokens(images, self.tokenizer(prompts), image_index)

    def word_embeddings(self, prompts: Sequence[str]) -> Tensor:
        ids = self.tokenizer(prompts)
        table = self.beit3.text_embed
        words = upload(ids > EOS_ID, table.weight.device).float()[..., None]
        return (table(upload(ids, table.weight.device)) * words).sum(dim=1) / words.sum(dim=1).clamp(min=1)

    def encode_tokens(self, images: Tensor, ids: Tensor, image_index: Tensor) -> Tensor:
        """Embed P prompts given as token ids.

        Args:
            images: [B, 3, S, S] from `preprocess`.
            ids: [P, L] on the CPU, padded with 1 on the right.
            image_index: [P] on the CPU, the image of each prompt.

        Returns:
            [P, D].

        Raises:
            ValueError: an id beyond the embedding table.
        """
        size = self.beit3.text_embed.num_embeddings
        if int(ids.max()) >= size:
            raise ValueError(
                f"token id {int(ids.max())} is beyond the {size} entries of the text embedding: "
                "tokenizer and BEiT-3 weights do not belong together"
            )
        vision = embed_images(self.beit3, images) if self.use_image else None
        lengths = (ids != PAD_ID).sum(dim=1)
        encode = partial(self._first_token, self.beit3)
        return encode_in_chunks(encode, vision, ids, lengths, image_index, self.chunk, images.device)


Streams = dict[str, Tensor]
"""Tokens by the name of their expert, in this order: "A" vision [N, V, D], "B" text [N, L, D]."""


def embed_images(beit3: BEiT3, images: Tensor) -> Tensor:
    """Embed images [B, 3, S, S] as vision tokens [B, V, D], which all prompts of an image share."""
    tokens = beit3.vision_embed(images)
    return tokens + beit3.encoder.embed_positions.A(tokens)


def first_token(beit3: BEiT3, vision: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
    """Compute the vision CLS after the last layer; without image, the text's `<s>`.

    Args:
        beit3: with sub-layer norms.
        vision: [N, V, D], from `embed_images`, or None.
        ids: [N, L].
        padding: bool [N, L], True after a text's end; None if all texts have L tokens.

    Returns:
        [N, D].
    """
    text = beit3.text_embed(ids)
    text = text + beit3.encoder.embed_positions.B(text)
    streams = {"B": text} if vision is None else {"A": vision, "B": text}
    mask = None
    if padding is not None:
        vision_tokens = 0 if vision is None else vision.shape[1]
        mask = F.pad(~padding, (vision_tokens, 0), value=True)[:, None, None]
    *layers, last = beit3.encoder.layers
    for layer in layers:
        streams = _run_layer(layer, streams, mask)
    streams = _run_layer(last, streams, mask, first_only=True)
    (token,) = _experts(beit3.encoder.layer_norm, streams).values()
    return token[:, 0]


def _run_layer(layer: EncoderLayer, streams: Streams, mask: Tensor | None, first_only: bool = False) -> Streams:
    """Run one layer; with `first_only`, for the first token alone, which still attends to all.

    mask: bool [N, 1, 1, T], False for padding; None attends to all tokens.
    """
    attention = layer.self_attn
    normed = _experts(layer.self_attn_layer_norm, streams)
    keys, values = _heads(attention, attention.k_proj, normed), _heads(attention, attention.v_proj, normed)
    if first_only:
        streams, normed = _first(streams), _first(normed)
    queries = _heads(attention, attention.q_proj, normed)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)
    parts = attended.split([x.shape[1] for x in streams.values()], dim=1)
    attended_streams = _experts(attention.inner_attn_ln, dict(zip(streams, parts, strict=True)))
    streams = _add(streams, _experts(attention.out_proj, attended_streams))
    return _add(streams, _experts(layer.ffn, _experts(layer.final_layer_norm, streams)))


def _experts(module: MultiwayNetwork, streams: Streams) -> Streams:
    """Apply to every token its own expert."""
    return {name: getattr(module, name)(x) for name, x in streams.items()}


def _heads(attention: MultiheadAttention, projection: MultiwayNetwork, streams: Streams) -> Tensor:
    """Project all tokens and split their width into heads: [N, heads, T, D / heads]."""
    tokens = torch.cat(list(_experts(projection, streams).values()), dim=1)
    return tokens.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def _first(streams: Streams) -> Streams:
    """The first token, [N, 1, D], in a stream of its own."""
    name, tokens = next(iter(streams.items()))
    return {name: tokens[:, :1]}


def _add(streams: Streams, others: Streams) -> Streams:
    return {name: x + others[name] for name, x in streams.items()}
