"""Our forward over torchscale's modules against torchscale's own."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openworldsam.modeling.prompt_encoders import BEiT3PromptEncoder
from openworldsam.modeling.prompt_encoders.beit3 import embed_images, first_token
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import PAD_ID

IDS = torch.tensor(
    [[0, 7, 2, 1, 1], [0, 8, 9, 10, 2], [0, 50, 60, 2, 1], [0, 11, 2, 1, 1], [0, 12, 13, 14, 2], [0, 15, 16, 2, 1]]
)
INDEX = torch.tensor([0, 0, 1, 2, 2, 2])


def encoder(**options):
    """All weights random, so that no norm is the identity and no bias nothing."""
    torch.manual_seed(0)
    module = BEiT3PromptEncoder(
        image_size=32, embed_dim=32, num_layers=3, num_heads=4, ffn_dim=64, vocab_size=100, **options
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def images(count=3):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def torchscale_embeddings(module, pictures, ids, index):
    visual = pictures[index] if module.use_image else None
    output = module.beit3(textual_tokens=ids, visual_tokens=visual, text_padding_position=ids == PAD_ID)
    return output["encoder_out"][:, 0]


def assert_equal(ours, theirs, tolerance=1e-5):
    """To a share of the largest."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("use_image", [True, False])
@pytest.mark.parametrize("chunk", [32, 4, 1])
@torch.no_grad()
def test_embeddings_equal_torchscale(use_image, chunk):
    module = encoder(use_image=use_image, chunk=chunk)
    assert_equal(module.encode_tokens(images(), IDS, INDEX), torchscale_embeddings(module, images(), IDS, INDEX))


@torch.no_grad()
def test_one_image_and_texts_without_padding():
    module, index = encoder(), torch.zeros(2, dtype=torch.long)
    unpadded = IDS[[1, 4]]
    ours = module.encode_tokens(images(1), unpadded, index)
    assert_equal(ours, torchscale_embeddings(module, images(1), unpadded, index))


@torch.no_grad()
def test_padding_and_order_change_nothing():
    module = encoder(chunk=2)
    embeddings = module.encode_tokens(images(), IDS, INDEX)
    shuffle = torch.tensor([4, 0, 3, 5, 1, 2])
    assert_equal(module.encode_tokens(images(), IDS[shuffle], INDEX[shuffle]), embeddings[shuffle])
    padded = torch.nn.functional.pad(IDS, (0, 3), value=PAD_ID)
    assert_equal(module.encode_tokens(images(), padded, INDEX), embeddings)


@pytest.mark.parametrize("use_image", [True, False])
def test_gradients_equal_torchscale(use_image):
    """Of every parameter, the token and position tables among them."""
    ours = encoder(use_image=use_image, chunk=4).train()
    theirs = copy.deepcopy(ours)
    weights = torch.randn(len(IDS), 32)
    (ours.encode_tokens(images(), IDS, INDEX) * weights).sum().backward()
    (torchscale_embeddings(theirs, images(), IDS, INDEX) * weights).sum().backward()
    assert ours.beit3.text_embed.weight.grad.any()
    for (name, parameter), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        found, expected = (torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, reference))
        # of text alone a key's bias moves all scores of a softmax alike: its gradient is rounding
        assert (found - expected).abs().max() <= 1e-5 * max(float(expected.abs().max()), 1), name


@torch.no_grad()
def test_under_bf16_autocast_it_is_as_exact_as_torchscale():
    module = encoder()
    exact = module.encode_tokens(images(), IDS, INDEX)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = module.encode_tokens(images(), IDS, INDEX)
        theirs = torchscale_embeddings(module, images(), IDS, INDEX)
    assert ours.dtype == theirs.dtype
    assert 0 < (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()


@torch.no_grad()
def test_no_multiplication_is_wasted():
    """Sorted by length, three chunks of two texts are unpadded; of the last layer, all tokens need keys and values."""
    module = encoder(chunk=2)
    with FlopCounterMode(display=False) as counter:
        module.encode_tokens(images(), IDS, INDEX)
    width, hidden, layers = 32, 64, 3
    tokens = sum(2 * (1 + 4 + length) for length in (3, 4, 5))  # CLS, four patches, text
    attention, feed_forward = width * width, width * hidden
    expected = (layers - 1) * tokens * (4 * attention + 2 * feed_forward)
    expected += tokens * 2 * attention + len(IDS) * (2 * attention + 2 * feed_forward)
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.aten.addmm] + counts[torch.ops.aten.mm] == 2 * expected
    assert counts[torch.ops.aten.convolution] == 2 * 3 * 4 * width * (3 * 16 * 16)  # once for each of three images


@torch.no_grad()
def test_a_chunk_is_one_graph():
    """Traces whole, so that torch.compile can take it."""
    module = encoder()
    ids, padding = IDS[:3], IDS[:3] == PAD_ID
    vision = embed_images(module.beit3, images())[INDEX[:3]]
    traced = torch.compile(first_token, backend="eager", fullgraph=True)(module.beit3, vision, ids, padding)
    assert_equal(traced, first_token(module.beit3, vision, ids, padding))
