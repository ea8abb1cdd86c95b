"""BEiT-3's first output token, without the computations that it does not depend on.

torchscale's modules hold the weights; this is their forward pass, pre-norm with sub-layer norms. It gives the vector
`beit3(...)["encoder_out"][:, 0]`, for which torchscale writes the attention out and computes every token of the last
layer.

Shapes: B images, N prompts, S input side, V vision tokens (CLS, then patches), L text tokens, T = V + L tokens of a
prompt (L without image), D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchscale.architecture.encoder import EncoderLayer
from torchscale.component.multihead_attention import MultiheadAttention
from torchscale.component.multiway_network import MultiwayNetwork
from torchscale.model.BEiT3 import BEiT3

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
