"""Our forward of SAM2's mask decoder against SAM2's own."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openworldsam.modeling.image_encoder import ImageFeatures
from openworldsam.modeling.mask_decoder import SAM2MaskDecoder
from openworldsam.modeling.two_way import decode_masks, shared_image

C, S = 64, 4


def weights(width, side=S):
    """A decoder no weight of which, biases and norms included, is 0 or 1."""
    torch.manual_seed(0)
    module = SAM2MaskDecoder(image_size=16 * side, width=width).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    return module


def picture(width, side=S):
    torch.manual_seed(1)
    maps = torch.randn(1, width // 8, 4 * side, 4 * side), torch.randn(1, width // 4, 2 * side, 2 * side)
    return ImageFeatures(torch.randn(1, width, side, side), maps)


def theirs(module, features, tokens, dense):
    rows = len(tokens)
    masks, iou, _, _ = module.decoder.predict_masks(
        image_embeddings=features.embed.expand(rows, -1, -1, -1),
        image_pe=module.positions(),
        sparse_prompt_embeddings=tokens,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=list(features.high_res),
    )
    return masks, iou


def ours(module, features, tokens, dense, num_masks=4):
    if len(dense) == 1:
        shared = shared_image(module.decoder, features, module.positions(), dense)
        return decode_masks(module.decoder, shared, tokens, num_masks)
    return decode_masks(
        module.decoder, shared_image(module.decoder, features, module.positions(), None), tokens, num_masks, dense
    )


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


# 8 heads * (6 + tokens) are fewer than the width / 2 channels of the projections in the wide one alone
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("tokens", [0, 1, 30])
@pytest.mark.parametrize("own_dense", [False, True])
def test_equals_sam2(width, tokens, own_dense):
    module, features = weights(width), picture(width)
    prompts = torch.randn(3, tokens, width)
    dense = torch.randn(3 if own_dense else 1, width, S, S)
    for found, expected in zip(
        ours(module, features, prompts, dense), theirs(module, features, prompts, dense), strict=True
    ):
        assert found.shape == expected.shape and relative(found, expected) < 1e-5


@pytest.mark.parametrize("width", [64, 128])
def test_gradients_of_the_tokens_equal_sam2s(width, monkeypatch):
    module = weights(width)
    positions = module.positions().double()
    monkeypatch.setattr(module, "positions", lambda: positions)  # SAM2 makes them in single precision
    module.double()
    single = picture(width)
    features = ImageFeatures(single.embed.double(), (single.high_res[0].double(), single.high_res[1].double()))
    dense = torch.randn(1, width, S, S, dtype=torch.double)
    gradients = []
    for decode in (ours, theirs):
        torch.manual_seed(2)
        prompts = torch.randn(3, 1, width, dtype=torch.double, requires_grad=True)
        masks, iou = decode(module, features, prompts, dense)
        (masks.square().mean() + iou.sum()).backward()
        gradients.append(prompts.grad)
    assert relative(*gradients) < 1e-9


def test_fewer_masks_are_the_first_ones():
    module, features = weights(C), picture(C)
    prompts, dense = torch.randn(2, 1, C), torch.randn(1, C, S, S)
    one, all_four = ours(module, features, prompts, dense, 1)[0], ours(module, features, prompts, dense)[0]
    assert one.shape[1] == 1 and relative(one[:, 0], all_four[:, 0]) < 1e-6


def test_half_precision_is_as_near_as_sam2s():
    module, features = weights(128), picture(128)
    prompts, dense = torch.randn(3, 1, 128), torch.randn(1, 128, S, S)
    exact, _ = theirs(module, features, prompts, dense)
    with torch.autocast("cpu", torch.bfloat16):
        half = [decode(module, features, prompts, dense)[0].float() for decode in (ours, theirs)]
    off = [float((masks - exact).square().mean().sqrt()) for masks in half]
    assert 0 < off[0] < 2 * off[1]


def test_takes_less_than_half_the_operations():
    module, features = weights(256, 16), picture(256, 16)
    prompts, dense = torch.randn(8, 1, 256), torch.randn(1, 256, 16, 16)
    operations = []
    for decode in (ours, theirs):
        with FlopCounterMode(display=False) as counter:
            decode(module, features, prompts, dense)
        operations.append(counter.get_total_flops())
    assert operations[0] < 0.5 * operations[1]
