"""Mask decoder: equal to the sam2 package, mask selection, subsets of queries, refinement."""

import pytest
import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import TwoWayTransformer

from openworldsam.modeling.adapter import DecoderTokens
from openworldsam.modeling.image_encoder import ImageFeatures
from openworldsam.modeling.mask_decoder import SAM2MaskDecoder, select_mask

C, S = 32, 8


def decoder(**options):
    torch.manual_seed(0)
    return SAM2MaskDecoder(image_size=16 * S, width=C, **options).eval()


def features(num_images=2):
    torch.manual_seed(1)
    return ImageFeatures(
        torch.randn(num_images, C, S, S),
        (torch.randn(num_images, C // 8, 4 * S, 4 * S), torch.randn(num_images, C // 4, 2 * S, 2 * S)),
    )


def tokens(index=(0, 0, 0, 1, 1)):
    torch.manual_seed(2)
    index = torch.tensor(index)
    queries = torch.randn(len(index), C)
    return DecoderTokens(queries, queries, index, index)


def sam2_decode(module, image, sparse, dense, dynamic):
    """Decode queries of one image by the sam2 package's decoder with the same weights."""
    theirs = MaskDecoder(
        transformer_dim=C,
        transformer=TwoWayTransformer(depth=2, embedding_dim=C, mlp_dim=2048, num_heads=8),
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        dynamic_multimask_via_stability=dynamic,
    ).eval()
    missing, unexpected = theirs.load_state_dict(module.decoder.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"conv_s0", "conv_s1"} and not unexpected
    masks, iou, _, _ = theirs(
        image_embeddings=image.embed,
        image_pe=module.positions(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        repeat_image=True,
        high_res_features=list(image.high_res),
    )
    return masks[:, 0], iou[:, 0]


@pytest.mark.parametrize("dynamic", [True, False])
@torch.no_grad()
def test_equals_the_sam2_package_one_image_at_a_time(dynamic):
    module, f, t = decoder(dynamic_multimask=dynamic, chunk=2), features(), tokens()
    logits, iou = module(f, t)
    no_mask = module.prompt_encoder.no_mask_embed.weight[:, :, None, None]
    for image in range(2):
        queries = t.queries[t.image_index == image][:, None]
        dense = no_mask.expand(len(queries), -1, S, S)
        expected, expected_iou = sam2_decode(module, f.of_image(image), queries, dense, dynamic)
        torch.testing.assert_close(logits[t.image_index == image], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(iou[t.image_index == image], expected_iou, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_these_weights_need_the_fallback():
    module, f, t = decoder(), features(), tokens()
    assert not torch.equal(module(f, t)[1], module(f, t, single_mask=True)[1])


def test_select_mask_by_hand():
    single = torch.full((4, 4), -1.0)
    single[0, 0], single[0, 1] = 1.0, 0.01  # area 1 above 0.05, area 2 above -0.05: unstable
    logits = torch.stack([single, *(torch.full((4, 4), float(i)) for i in (1, 2, 3))])[None]
    iou = torch.tensor([[0.99, 0.1, 0.3, 0.2]])
    mask, score = select_mask(logits, iou, dynamic_multimask=True)
    assert (mask == 2).all() and score.item() == pytest.approx(0.3)
    mask, score = select_mask(logits, iou, dynamic_multimask=False)
    assert torch.equal(mask[0], single) and score.item() == pytest.approx(0.99)


def test_an_empty_or_stable_mask_does_not_fall_back():
    empty, stable = torch.full((4, 4), -1.0), torch.full((4, 4), -1.0)
    stable[:2] = 1.0
    logits = torch.stack([torch.stack([m, *[torch.ones(4, 4)] * 3]) for m in (empty, stable)])
    mask, score = select_mask(logits, torch.tensor([[0.5, 0.9, 0.9, 0.9]] * 2), dynamic_multimask=True)
    assert torch.equal(mask, torch.stack([empty, stable])) and (score == 0.5).all()


@torch.no_grad()
def test_selected_queries_equal_those_of_all():
    module, f, t = decoder(chunk=2), features(), tokens()
    selected = torch.tensor([1, 3, 4])
    logits, iou = module(f, t)
    some, some_iou = module(f, t, selected)
    torch.testing.assert_close(some, logits[selected], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(some_iou, iou[selected], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_no_queries_give_empty_results():
    module, f, none = decoder(), features(), torch.zeros(0, dtype=torch.long)
    for logits, iou in (module(f, tokens(), none), module.refine(f.of_image(0), torch.zeros(0, 4 * S, 4 * S))):
        assert logits.shape == (0, 4 * S, 4 * S) and iou.shape == (0,)


@torch.no_grad()
def test_refinement_equals_the_sam2_package_with_a_mask_prompt():
    module, f = decoder(chunk=2), features().of_image(1)
    masks = torch.randn(3, 4 * S, 4 * S) * 5
    logits, iou = module.refine(f, masks)
    for n in range(3):
        sparse, dense = module.prompt_encoder(points=None, boxes=None, masks=masks[n : n + 1, None])
        assert sparse.shape[1] == 0
        expected, expected_iou = sam2_decode(module, f, sparse, dense, dynamic=True)
        torch.testing.assert_close(logits[n], expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(iou[n], expected_iou[0], rtol=1e-4, atol=1e-5)
