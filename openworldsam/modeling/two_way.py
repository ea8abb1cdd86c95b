"""SAM2's mask decoder as its weights define it, with what rows share computed once and nothing laid out twice.

SAM2's own forward copies the image's tokens for every row and projects them ten times a row. Here the first layer's
projections of the image are made once per image; later ones are absorbed into the few tokens of a row, since
q (W k) = (q W) k; and masks are upscaled by matrix products, in an order of pixels in which a position's 4 x 4
pixels stay together. tests/modeling/test_two_way.py holds it against SAM2's forward.

Shapes: r rows of one image, T tokens of a row (SAM2's six and the prompt's), N = S * S image positions, C width,
h heads of d = C / 2h channels, m masks of a row.
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
    """What all rows of one image have in common.

    keys: [1, N, C] image tokens, like all here in the number format of the arithmetic.
    positions: [1, N, C].
    projected: keys, values [1, h, N, d] of the first layer's token-to-image attention and queries [1, h, N, d] of its
        image-to-token attention; None if the rows differ from the start.
    high_res: [N, 4, 4, C/8] and [N, 4, C/4], the pixels of each position together, plus the biases that the
        upscaling adds at the same place.
    """

    keys: Tensor
    positions: Tensor
    projected: tuple[Tensor, Tensor, Tensor] | None
    high_res: tuple[Tensor, Tensor]


def shared_image(decoder: MaskDecoder, features: ImageFeatures, positions: Tensor, dense: Tensor | None) -> SharedImage:
    """Prepare one image for its rows.

    Args:
        decoder: SAM2's, for its weights.
        features: of one image.
        positions: [1, C, S, S].
        dense: [1, C, S, S], added to the image for every row; None if every row brings its own (`decode_masks`).
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
    """Decode r rows of one image.

    Args:
        decoder: SAM2's, for its weights.
        image: of the rows.
        tokens: [r, t, C], the prompt's; t may be 0.
        num_masks: how many of SAM2's four masks to make, the single one first.
        dense: [r, C, S, S], the rows' own dense prompts, if `image` was made without.

    Returns:
        mask logits [r, m, 4S, 4S] and predicted IoU [r, 4] of all four.
    """
    output_tokens = (decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight)
    tokens = torch.cat([torch.cat(output_tokens).expand(len(tokens), -1, -1), tokens], dim=1)
    queries, keys = _two_way(decoder.transformer, image, tokens, None if dense is None else _flat(dense))
    kernels = torch.stack(
        [mlp(queries[:, 2 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps[:num_masks])], dim=1
    )
    return _upscaled_masks(decoder.output_upscaling, keys, image.high_res, kernels), decoder.iou_prediction_head(
        queries[:, 1]
    )


def _two_way(
    transformer: TwoWayTransformer, image: SharedImage, tokens: Tensor, dense: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens [r, T, C] and image look at each other: -> queries [r, T, C], keys [r, N, C]."""
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
        projected = None  # from here on every row has an image of its own
    positioned = keys + image.positions
    attended = _token_to_image(transformer.final_attn_token_to_image, queries + tokens, positioned, keys, None)
    return transformer.norm_final_attn(queries + attended), keys


def _token_to_image(
    attention: Attention, q: Tensor, positioned: Tensor, keys: Tensor, projected: tuple[Tensor, ...] | None
) -> Tensor:
    """Queries [r, T, C] attend to image tokens [r, N, C], or [1, N, C] with their projections: -> [r, T, C]."""
    rows, length, _ = q.shape
    queries = _heads(attention, attention.q_proj(q))  # [r, h, T, d]
    if projected:
        folded = queries.transpose(0, 1).flatten(1, 2)[None]  # the rows one after the other: [1, h, r * T, d]
        attended = F.scaled_dot_product_attention(folded, projected[0], projected[1])
        attended = attended[0].unflatten(1, (rows, length)).transpose(0, 1)
    elif _few(attention, length):
        # the bias of k_proj changes all scores of a query alike, which softmax does not see; the weights of the
        # attention add up to 1, so the bias of v_proj is added once
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
    """Image tokens [r or 1, N, C] plus what they see in keys and values [r, T, C]: -> [r, N, C]."""
    rows, length, _ = k.shape
    keys, values = _heads(attention, attention.k_proj(k)), _heads(attention, attention.v_proj(v))  # [r, h, T, d]
    if not _few(attention, length):
        q = projected[2] if projected else _heads(attention, attention.q_proj(positioned))
        attended = F.scaled_dot_product_attention(q.expand(rows, -1, -1, -1), keys, values)
        return image + attention.out_proj(attended.transpose(1, 2).flatten(2))
    keys = keys * keys.shape[-1] ** -0.5
    # softmax over few tokens is slow where they are the last dimension, so the image's tokens are that
    if projected:
        scores = keys @ projected[2].mT  # [r, h, T, N]
    else:
        absorbed = torch.einsum("rhtd,hdc->rhtc", keys, _by_head(attention.q_proj.weight, attention)).flatten(1, 2)
        offset = torch.einsum("rhtd,hd->rht", keys, attention.q_proj.bias.view(attention.num_heads, -1)).flatten(1)
        scores = torch.baddbmm(offset[..., None], absorbed, positioned.mT).unflatten(1, (-1, length))
    weights = scores.softmax(dim=2).flatten(1, 2).mT  # [r, N, h * T]
    out = _by_head(attention.out_proj.weight.T, attention)  # [h, d, C]
    contributions = torch.einsum("rhtd,hdc->rhtc", values, out)
    # every head's weights add up to 1, so what one head contributes may carry the bias
    contributions[:, 0] += attention.out_proj.bias
    return torch.baddbmm(image, weights, contributions.flatten(1, 2))


def _upscaled_masks(upscaling: nn.Sequential, keys: Tensor, high_res: tuple[Tensor, Tensor], kernels: Tensor) -> Tensor:
    """Image tokens [r, N, C] and kernels [r, m, C/8] -> mask logits [r, m, 4S, 4S]."""
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
    """A transposed 2 x 2 convolution of stride 2, without bias, as a matrix product: [..., in] -> [..., 4, out]."""
    return F.linear(x, convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)).unflatten(-1, (4, -1))


def _few(attention: Attention, length: int) -> bool:
    """Whether this many tokens of all heads are fewer than the channels that the image would be projected to."""
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
