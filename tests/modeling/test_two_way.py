"""The fast forward pass of SAM2's mask decoder equals SAM2's: masks, gradients, half precision; it is cheaper."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openworldsam.modeling.image_encoder import ImageFeatures
from openworldsam.modeling.mask_decoder import SAM2MaskDecoder
from openworldsam.modeling.two_way import decode_masks, shared_image

C, S = 64, 4


def weights(width, side=S):
    """A decoder with random weights, including biases and norms."""
    torch.manual_seed(0)
    module = SAM2MaskDecoder(image_size=16 * side, width=width).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    return module


def image_features(width, side=S):
    torch.manual_seed(1)
    maps = torch.randn(1, width // 8, 4 * side, 4 * side), torch.randn(1, width // 4, 2 * side, 2 * side)
    return ImageFeatures(torch.randn(1, width, side, side), maps)


def theirs(module, features, tokens, dense):
    masks, iou, _, _ = module.decoder.predict_masks(
        image_embeddings=features.embed.expand(len(tokens), -1, -1, -1),
        image_pe=module.positions(),
        sparse_prompt_embeddings=tokens,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=list(features.high_res),
    )
    return masks, iou


def ours(module, features, tokens, dense, num_masks=4):
    shared, each = (dense, None) if len(dense) == 1 else (None, dense)
    image = shared_image(module.decoder, features, module.positions(), shared)
    return decode_masks(module.decoder, image, tokens, num_masks, each)


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


# only with width 128, 8 heads x (6 + tokens) are fewer than the width / 2 channels of a projection
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("tokens", [0, 1, 30])
@pytest.mark.parametrize("shared_dense", [True, False])
def test_equals_sam2(width, tokens, shared_dense):
    module, features = weights(width), image_features(width)
    prompts = torch.randn(3, tokens, width)
    dense = torch.randn(1 if shared_dense else 3, width, S, S)
    results = (decode(module, features, prompts, dense) for decode in (ours, theirs))
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape and relative(found, expected) < 1e-5


@pytest.mark.parametrize("width", [64, 128])
def test_gradients_of_the_tokens_equal_sam2s(width, monkeypatch):
    module = weights(width)
    positions = module.positions().double()
    monkeypatch.setattr(module, "positions", lambda: positions)  # SAM2 computes them in single precision
    module.double()
    single = image_features(width)
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
    module, features = weights(C), image_features(C)
    prompts, dense = torch.randn(2, 1, C), torch.randn(1, C, S, S)
    one, all_four = ours(module, features, prompts, dense, 1)[0], ours(module, features, prompts, dense)[0]
    assert one.shape[1] == 1 and relative(one[:, 0], all_four[:, 0]) < 1e-6


def test_half_precision_is_as_close_as_sam2s():
    module, features = weights(128), image_features(128)
    prompts, dense = torch.randn(3, 1, 128), torch.randn(1, 128, S, S)
    exact, _ = theirs(module, features, prompts, dense)
    with torch.autocast("cpu", torch.bfloat16):
        half = [decode(module, features, prompts, dense)[0].float() for decode in (ours, theirs)]
    off = [float((masks - exact).square().mean().sqrt()) for masks in half]
    assert 0 < off[0] < 2 * off[1]


def test_takes_less_than_half_the_operations():
    module, features = weights(256, 16), image_features(256, 16)
    prompts, dense = torch.randn(8, 1, 256), torch.randn(1, 256, 16, 16)
    operations = []
    for decode in (ours, theirs):
        with FlopCounterMode(display=False) as counter:
            decode(module, features, prompts, dense)
        operations.append(counter.get_total_flops())
    assert operations[0] < 0.5 * operations[1]
