"""Faster forward pass of SAM2's mask decoder: equal results, with the work that queries share done once per image.

SAM2's forward copies the image tokens for every query and projects them ten times per query. Here the first layer
projects them once per image; later projections are absorbed into the few tokens of a query, since q (W k) = (q W) k;
and masks are upscaled by matrix products on a pixel order that keeps the 4 x 4 pixels of a position together.
tests/modeling/test_two_way.py compares it with SAM2's forward.

Shapes: r queries of one image, T tokens of a query (SAM2's six and t of the prompt), N = S * S image positions,
C width, h heads of d = C / 2h channels, m masks of a query.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from openworldsam.modeling.image_encoder import ImageFeatures


class SharedImage(NamedTuple):
    """Tensors that all queries of one image share, in the arithmetic's number format.

    keys: [1, N, C], image tokens.
    positions: [1, N, C], positional encoding.
    projected: [1, h, N, d] each: keys and values of the first layer's token-to-image attention, and queries of its
        image-to-token attention; None if every query has a dense prompt of its own.
    high_res: [N, 4, 4, C/8] and [N, 4, C/4], with the pixels of a position together, plus the biases of the upscaling
        convolutions that are added at the same point.
    """

    keys: Tensor
    positions: Tensor
    projected: tuple[Tensor, Tensor, Tensor] | None
    high_res: tuple[Tensor, Tensor]


def shared_image(decoder: MaskDecoder, features: ImageFeatures, positions: Tensor, dense: Tensor | None) -> SharedImage:
    """Prepare one image for its queries.

    Args:
        decoder: SAM2's module, for its weights.
        features: features of one image.
        positions: positional encoding [1, C, S, S].
        dense: dense prompt of all queries [1, C, S, S]; None if `decode_masks` gets one per query.
    """
    device = features.embed.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.embed.dtype
    places = _flat(positions).to(dtype)
    keys = _flat(features.embed if dense is None else features.embed + dense).to(dtype)
    projected = None
    if dense is not None:
        layer = decoder.transformer.layers[0]
        assert isinstance(layer, TwoWayAttentionBlock)
        positioned = keys + places
        to_image, to_token = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        projected = (
            _heads(to_image, to_image.k_proj(positioned)),
            _heads(to_image, to_image.v_proj(keys)),
            _heads(to_token, to_token.q_proj(positioned)),
        )
    first, _, _, second, _ = decoder.output_upscaling
    side = features.embed.shape[-1]
    finest, middle = features.high_res
    finest = finest[0].view(-1, side, 2, 2, side, 2, 2).permute(1, 4, 2, 5, 3, 6, 0).reshape(side**2, 4, 4, -1)
    middle = middle[0].view(-1, side, 2, side, 2).permute(1, 3, 2, 4, 0).reshape(side**2, 4, -1)
    high_res = (finest + second.bias).to(dtype), (middle + first.bias).to(dtype)
    return SharedImage(keys, places, projected, high_res)


def decode_masks(
    decoder: MaskDecoder, image: SharedImage, tokens: Tensor, num_masks: int, dense: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Decode r queries of one image.

    Args:
        decoder: SAM2's module, for its weights.
        image: image of the queries.
        tokens: tokens of the prompt [r, t, C]; t may be 0.
        num_masks: m, how many of SAM2's four masks to compute; the single mask comes first.
        dense: dense prompts [r, C, S, S], if `image` was prepared without.

    Returns:
        mask logits [r, m, 4S, 4S] and the predicted IoU [r, 4] of all four masks.
    """
    output_tokens = (decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight)
    tokens = torch.cat([torch.cat(output_tokens).expand(len(tokens), -1, -1), tokens], dim=1)
    dense = None if dense is None else _flat(dense)
    read = slice(1, 2 + num_masks)  # the tokens of the predicted IoU and of the masks
    queries, keys = _two_way(decoder.transformer, image, tokens, dense, read)
    mlps = decoder.output_hypernetworks_mlps[:num_masks]
    kernels = torch.stack([mlp(queries[:, 1 + i]) for i, mlp in enumerate(mlps)], dim=1)
    masks = _upscaled_masks(decoder.output_upscaling, keys, image.high_res, kernels)
    return masks, decoder.iou_prediction_head(queries[:, 0])


def _two_way(
    transformer: TwoWayTransformer, image: SharedImage, tokens: Tensor, dense: Tensor | None, read: slice
) -> tuple[Tensor, Tensor]:
    """Let tokens [r, T, C] and image attend to each other; return the tokens to `read` [r, n, C], keys [r, N, C]."""
    queries, projected = tokens, image.projected
    keys = image.keys if dense is None else image.keys + dense.to(image.keys.dtype)
    for layer in transformer.layers:
        assert isinstance(layer, TwoWayAttentionBlock)
        positioned = keys + image.positions
        if layer.skip_first_layer_pe:
            queries = layer.norm1(layer.self_attn(queries, queries, queries))
        else:
            q = queries + tokens
            queries = layer.norm1(queries + layer.self_attn(q, q, queries))
        attended = _token_to_image(layer.cross_attn_token_to_image, queries + tokens, positioned, keys, projected)
        queries = layer.norm2(queries + attended)
        queries = layer.norm3(queries + layer.mlp(queries))
        attention = layer.cross_attn_image_to_token
        keys = layer.norm4(_image_to_token(attention, keys, positioned, queries + tokens, queries, projected))
        projected = None  # from here on the image tokens differ between queries
    positioned = keys + image.positions
    queries, tokens = queries[:, read], tokens[:, read]
    attended = _token_to_image(transformer.final_attn_token_to_image, queries + tokens, positioned, keys, None)
    return transformer.norm_final_attn(queries + attended), keys


def _token_to_image(
    attention: Attention, q: Tensor, positioned: Tensor, keys: Tensor, projected: tuple[Tensor, ...] | None
) -> Tensor:
    """Let q [r, T, C] attend to image tokens, [r, N, C] or [1, N, C] with their projections; return [r, T, C]."""
    count, length, _ = q.shape
    queries = _heads(attention, attention.q_proj(q))  # [r, h, T, d]
    if projected:
        folded = queries.transpose(0, 1).flatten(1, 2)[None]  # all queries in one sequence: [1, h, r * T, d]
        attended = F.scaled_dot_product_attention(folded, projected[0], projected[1])
        attended = attended[0].unflatten(1, (count, length)).transpose(0, 1)
    elif _few(attention, length):
        # the bias of k_proj shifts all scores of a token equally, which softmax ignores; attention weights sum to 1,
        # so the bias of v_proj is added once
        absorbed = torch.einsum("rhtd,hdc->rhtc", queries, _by_head(attention.k_proj.weight, attention)).flatten(1, 2)
        scale = queries.shape[-1] ** -0.5
        seen = F.scaled_dot_product_attention(absorbed[:, None], positioned[:, None], keys[:, None], scale=scale)
        seen = seen[:, 0].unflatten(1, (attention.num_heads, length))
        attended = torch.einsum("rhtc,hdc->rhtd", seen, _by_head(attention.v_proj.weight, attention))
        attended = attended + attention.v_proj.bias.view(attention.num_heads, 1, -1)
    else:
        k, v = _heads(attention, attention.k_proj(positioned)), _heads(attention, attention.v_proj(keys))
        attended = F.scaled_dot_product_attention(queries, k, v)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _image_to_token(
    attention: Attention, image: Tensor, positioned: Tensor, k: Tensor, v: Tensor, projected: tuple[Tensor, ...] | None
) -> Tensor:
    """Let image tokens [r or 1, N, C] attend to k and v [r, T, C], and add them; return [r, N, C]."""
    count, length, _ = k.shape
    keys, values = _heads(attention, attention.k_proj(k)), _heads(attention, attention.v_proj(v))  # [r, h, T, d]
    if not _few(attention, length):
        q = projected[2] if projected else _heads(attention, attention.q_proj(positioned))
        attended = F.scaled_dot_product_attention(q.expand(count, -1, -1, -1), keys, values)
        return image + attention.out_proj(attended.transpose(1, 2).flatten(2))
    keys = keys * keys.shape[-1] ** -0.5
    # softmax over few tokens is slow along the last dimension, so the image tokens are last
    if projected:
        scores = keys @ projected[2].mT  # [r, h, T, N]
    else:
        absorbed = torch.einsum("rhtd,hdc->rhtc", keys, _by_head(attention.q_proj.weight, attention)).flatten(1, 2)
        offset = torch.einsum("rhtd,hd->rht", keys, attention.q_proj.bias.view(attention.num_heads, -1)).flatten(1)
        scores = torch.baddbmm(offset[..., None], absorbed, positioned.mT).unflatten(1, (-1, length))
    weights = scores.softmax(dim=2).flatten(1, 2).mT  # [r, N, h * T]
    out = _by_head(attention.out_proj.weight.T, attention)  # [h, d, C]
    contributions = torch.einsum("rhtd,hdc->rhtc", values, out)
    # the weights of each head sum to 1, so the contributions of one head can carry the bias
    contributions[:, 0] += attention.out_proj.bias
    return torch.baddbmm(image, weights, contributions.flatten(1, 2))


def _upscaled_masks(upscaling: nn.Sequential, keys: Tensor, high_res: tuple[Tensor, Tensor], kernels: Tensor) -> Tensor:
    """Upscale image tokens [r, N, C] and apply the masks' kernels [r, m, C/8]; return logits [r, m, 4S, 4S]."""
    first, norm, activation, second, last_activation = upscaling
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
    assert isinstance(norm, LayerNorm2d)
    finest, middle = high_res
    x = _pixels(first, keys).add_(middle)  # [r, N, 4, C/4]
    x = activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    x = last_activation(_pixels(second, x).add_(finest))  # [r, N, 4, 4, C/8]
    masks = kernels @ x.flatten(1, 3).mT  # [r, m, N * 16]
    side = int(keys.shape[1] ** 0.5)
    return (
        masks.view(*masks.shape[:2], side, side, 2, 2, 2, 2)
        .permute(0, 1, 2, 4, 6, 3, 5, 7)
        .reshape(*masks.shape[:2], 4 * side, 4 * side)
    )


def _pixels(convolution: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Apply a transposed 2 x 2 convolution of stride 2, without bias, to pixels [..., in]; return [..., 4, out]."""
    return F.linear(x, convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)).unflatten(-1, (4, -1))


def _few(attention: Attention, length: int) -> bool:
    """Whether absorbing is cheaper: `length` tokens of all heads are fewer than the channels of a projection."""
    return attention.num_heads * length < attention.internal_dim


def _heads(attention: Attention, x: Tensor) -> Tensor:
    """[n, L, h * d] -> [n, h, L, d]."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _by_head(weight: Tensor, attention: Attention) -> Tensor:
    """[h * d, C] -> [h, d, C]."""
    return weight.unflatten(0, (attention.num_heads, -1))


def _flat(maps: Tensor) -> Tensor:
    """[n, C, S, S] -> [n, N, C]."""
    return maps.flatten(2).transpose(1, 2)
