"""Clicks and boxes: equal to SAM2's own image predictor, the right mask is picked, and bad input is named."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor

from openworldsam import OpenWorldSAMPredictor
from openworldsam.config import load_config
from openworldsam.data.datasets.shapes import configured_world, split_seed
from openworldsam.data.shapes import render
from openworldsam.inference import Found
from openworldsam.predictor.clicks import mask_logits
from openworldsam.predictor.prediction import Prediction
from openworldsam.pretraining.describe import innermost

ROOT = Path(__file__).parents[2]
PROMPTS = ["cat", "grass", "a blue ball"]
CLICKS = {
    "a click": {"points": [(200, 150.5)]},
    "a negative click": {"points": [(20, 30)], "labels": [0]},
    "clicks": {"points": [(200, 150), (0, 299), (450, 3)], "labels": [1, 0, 1]},
    "a box": {"box": [20, 30, 451, 200]},
    "a box and a click": {"points": [(40, 50)], "labels": [0], "box": [20.5, 30, 300, 200]},
}


@pytest.fixture
def asked(predictor, photograph):
    """A predictor with a picture of 451 x 300 pixels."""
    predictor.set_image(photograph)
    return predictor


@pytest.fixture
def sam2(asked):
    """SAM2's own predictor with the weights, features and picture of ours."""
    module, features = asked.model.mask_decoder, asked.session.features
    width = module.prompt_encoder.embed_dim
    decoder = MaskDecoder(
        transformer_dim=width,
        transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8),
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        dynamic_multimask_via_stability=True,
    ).eval()
    side = asked.model.image_encoder.image_size
    model = SimpleNamespace(
        image_size=side,
        sam_prompt_encoder=module.prompt_encoder,
        sam_mask_decoder=decoder,
        device=torch.device("cpu"),
    )
    theirs = SAM2ImagePredictor(model)
    theirs._features = {"image_embed": features.embed, "high_res_feats": list(features.high_res)}
    theirs._orig_hw, theirs._is_image_set = [(300, 451)], True

    def predict(points=None, labels=None, box=None, mask=None):
        missing, unexpected = decoder.load_state_dict(module.decoder.state_dict(), strict=False)
        assert {name.split(".")[0] for name in missing} == {"conv_s0", "conv_s1"} and not unexpected
        lone = points is not None and len(points) == 1 and box is None and mask is None
        labels = [1] * len(points) if points is not None and labels is None else labels
        masks, scores, logits = theirs.predict(
            *(None if value is None else np.array(value) for value in (points, labels, box)),
            None if mask is None else mask[None],
            multimask_output=lone,
        )
        best = scores.argmax()
        return masks[best].astype(bool), scores[best], logits[best]

    return predict


def assert_same(result, expected):
    assert len(result.masks) == 1
    masks, score, logits = expected
    assert (result.masks[0] != masks).mean() < 1e-4  # a logit of 0, but for rounding
    np.testing.assert_allclose(result.scores[0], score, rtol=1e-4)
    np.testing.assert_allclose(result.logits[0], logits, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def enlarge_masks(predictor):
    """Makes logits so large that they are clamped, and masks that are stable."""
    for mlp in predictor.model.mask_decoder.decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight *= 100


@pytest.mark.parametrize("arguments", CLICKS.values(), ids=CLICKS)
@pytest.mark.parametrize("large", [False, True])
def test_equals_sam2s_predictor_with_and_without_a_mask(asked, sam2, arguments, large):
    if large:
        enlarge_masks(asked)
    result = asked.click(**arguments)
    assert_same(result, sam2(**arguments))
    assert (abs(result.logits).max() == 32) == large
    mask = result.logits[0]
    assert_same(asked.click(**arguments, mask=mask), sam2(**arguments, mask=mask))
    assert_same(asked.click(mask=mask), sam2(mask=mask))


def test_the_fallback_from_unstable_masks_was_exercised_above(asked):
    found = asked.click(**CLICKS["clicks"])
    asked.model.mask_decoder.dynamic_multimask = False
    assert found.scores != asked.click(**CLICKS["clicks"]).scores


def test_a_result_is_whole(asked):
    result = asked.click(**CLICKS["clicks"])
    ys, xs = np.nonzero(result.masks[0])
    assert result.boxes.tolist() == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
    assert ((result.label_map == 1) == result.masks[0]).all()
    assert (result.task, result.prompts, result.summary) == ("interactive", ("object",), "object 1")
    assert result.best_score == result.scores[0] and result.is_thing.tolist() == [True]


@pytest.mark.parametrize("task", ["instance", "referring"])
def test_a_mask_of_a_text_is_corrected_by_a_click(asked, task):
    among = asked.predict(PROMPTS, task, nms_threshold=1.0)
    assert len(among.masks) > 1
    best = int(np.argmax(among.masks[:, 150, 200] * among.scores))  # of those with the pixel x = 200, y = 150
    assert among.masks[best, 150, 200]
    result = asked.click([(200, 150)], among=among)
    expected = asked.click([(200, 150)], mask=among.logits[best])
    assert np.array_equal(result.logits, expected.logits) and result.prompts == (PROMPTS[among.prompt_index[best]],)


def test_results_do_not_depend_on_history(asked, photograph):
    first, second = {"points": [(200, 150)]}, {"points": [(200, 150), (90, 30)], "labels": [1, 0]}
    among = asked.predict(PROMPTS)
    before = [asked.click(**first), asked.click(**first, among=among)]
    asked.click(**second, among=among)
    asked.predict(["a dog"], "panoptic")
    asked.click(**second, mask=before[0].logits[0])
    for undone, expected in zip([asked.click(**first), asked.click(**first, among=among)], before, strict=True):
        assert np.array_equal(undone.logits, expected.logits) and np.array_equal(undone.masks, expected.masks)
    again = asked.predict(PROMPTS)
    assert np.array_equal(again.logits, among.logits)


def strips(*columns, scores, size=(4, 12)):
    """Masks of whole columns of pixels, as an instance result."""
    masks = torch.zeros(len(columns), *size, dtype=torch.bool)
    for mask, (start, stop) in zip(masks, columns, strict=True):
        mask[:, start:stop] = True
    logits = torch.arange(len(masks)).view(-1, 1, 1).expand(-1, 32, 32)  # the number of the mask
    found = Found(masks, torch.tensor(scores), torch.arange(len(masks)), torch.zeros(len(masks), 2), logits)
    names = [f"mask {i}" for i in range(len(masks))]
    is_thing = [i != 1 for i in range(len(masks))]
    return Prediction.of(found, "instance", names, is_thing=is_thing, rule="iou", threshold=0.5, best_scores=scores)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"points": [(1, 0)]}, 0),
        ({"points": [(5, 0)]}, 2),  # in 1 and 2; the better score
        ({"points": [(5, 0), (7, 3)]}, 1),  # more positive clicks
        ({"points": [(5, 0), (4, 3)], "labels": [1, 0]}, 2),  # both have a negative one, of which 2 is better
        ({"points": [(5, 0), (3, 3)], "labels": [1, 0]}, 1),  # less negative ones
        ({"box": [0, 0, 4, 4]}, 0),
        ({"box": [4, 0, 8, 4]}, 1),
        ({"points": [(5, 0)], "box": [4, 0, 8, 4]}, 1),
        ({"points": [(5, 0), (11, 1), (9, 1)], "labels": [1, 1, 1]}, 2),  # one click beside every mask
        ({"points": [(11, 1)]}, None),
        ({"box": [10, 0, 12, 4]}, None),
    ],
)
def test_the_mask_that_is_hit_best(predictor, arguments, expected):
    predictor.set_image(np.full((4, 12, 3), 128, np.uint8))
    among = strips((0, 3), (4, 8), (2, 7), scores=[0.6, 0.7, 0.8])
    seen = []
    decode = predictor.model.mask_decoder.decode_clicks
    predictor.model.mask_decoder.decode_clicks = lambda *given: seen.append(given[-1]) or decode(*given)
    result = predictor.click(**arguments, among=among)
    if expected is None:
        assert seen == [None] and result.prompts == ("object",)
    else:
        assert (seen[0] == expected).all()
        assert result.prompts == (f"mask {expected}",) and result.is_thing.tolist() in ([expected != 1], [])


def test_nothing_found_by_the_text_leaves_the_click(asked):
    among = asked.predict(PROMPTS, score_threshold=1.0)
    assert len(among.masks) == 0
    assert np.array_equal(asked.click([(200, 150)], among=among).logits, asked.click([(200, 150)]).logits)


def test_on_shapes_a_click_corrects_what_a_text_found(monkeypatch):
    """The weights that ship; every thing of six scenes, clicked on in its middle."""
    monkeypatch.chdir(ROOT)
    cfg = load_config("configs/shapes/openworldsam.yaml")
    world, seed = configured_world(cfg), split_seed(cfg.DATASETS.SHAPES_SEED, "demo")
    predictor = OpenWorldSAMPredictor(cfg)
    by_text, corrected = [], []
    for scene in (render(world, seed, index) for index in range(6)):
        predictor.set_image(scene.image)
        for segment in (segment for segment in scene.segments if segment.is_thing):
            truth = scene.segment_map == segment.id
            found = predictor.predict(segment.name)
            clicked = predictor.click([innermost(truth)], among=found)
            for result, best in ((found, by_text), (clicked, corrected)):
                iou = [(mask & truth).sum() / (mask | truth).sum() for mask in result.masks]
                best.append(max(iou, default=0))
    assert np.mean(corrected) > 0.8 and np.mean(corrected) > np.mean(by_text) + 0.05


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(asked, tiny_cfg, photograph, precision):
    half = type(asked)(tiny_cfg, opts=["MODEL.PRECISION", precision])
    half.set_image(photograph)
    for arguments in ({}, {"mask": np.zeros((32, 32))}):
        exact, found = (p.click(**CLICKS["a box"], **arguments) for p in (asked, half))
        assert found.logits.dtype == found.scores.dtype == np.float32
        np.testing.assert_allclose(found.scores, exact.scores, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give points, a box or a mask"),
        ({"points": [(451, 0)]}, r"the click \(451, 0\) is outside the image of 451 x 300 pixels"),
        ({"points": [(0, -1)]}, r"\(0, -1\) is outside"),
        ({"points": [(0, float("nan"))]}, r"\(0, nan\) is outside"),
        ({"points": [(1, 2)], "labels": [1, 1]}, "got 2 labels for 1 clicks"),
        ({"labels": [1]}, "got 1 labels for 0 clicks"),
        ({"points": [(1, 2)], "labels": [2]}, r"1 \(positive\) or 0 \(negative\), got \[2.0\]"),
        ({"points": [(1, 2)], "labels": ["yes"]}, "labels must be a list of 1 and 0; got"),
        ({"points": (1, 2)}, r"pairs x, y; got the shape \(2,\)"),
        ({"points": "here"}, "points must be a list of pairs x, y; got 'here'"),
        ({"points": [(1, 2), (3,)]}, "points must be a list of pairs x, y; got"),
        ({"box": [5, 5, 5, 9]}, "within the image of 451 x 300 pixels, got 5, 5, 5, 9"),
        ({"box": [0, 0, 452, 9]}, "got 0, 0, 452, 9"),
        ({"box": [[0, 0], [5, 9]]}, r"box must be x0, y0, x1, y1; got the shape \(2, 2\)"),
        ({"mask": np.ones((300, 451), np.uint8)}, r"of shape \(32, 32\), or bool .*; got uint8 of shape \(300, 451\)"),
        ({"mask": np.ones((451, 300), bool)}, r"the image's shape \(300, 451\); got bool of shape \(451, 300\)"),
        ({"mask": [[1], [1, 2]]}, "mask must be one of the masks or logits"),
        ({"mask": np.ones((5, 5), bool).tolist()}, r"got bool of shape \(5, 5\)"),
        ({"mask": np.full((32, 32), np.inf)}, "finite"),
        ({"points": [(1, 2)], "among": ["dog"]}, "among is what predict gave, got list"),
        ({"mask": np.zeros((32, 32)), "among": strips((0, 3), scores=[0.6])}, "mask or among, not both"),
        ({"points": [(1, 2)], "among": strips((0, 3), scores=[0.6])}, "another image: 12 x 4 pixels, not 451 x 300"),
        (
            {"points": [(1, 2)], "labels": [0], "among": strips((0, 3), scores=[0.6], size=(300, 451))},
            "a positive click or a box",
        ),
    ],
)
def test_bad_input_is_named(asked, arguments, message):
    with pytest.raises(ValueError, match=message):
        asked.click(**arguments)


def test_clicks_need_an_image(predictor):
    with pytest.raises(ValueError, match="set_image"):
        predictor.click([(1, 2)])


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_a_mask_of_several_queries_is_corrected_by_a_click(asked, task):
    """Its pixels are the prompt, as it has no logits."""
    among = asked.predict(PROMPTS, task, score_threshold=0.0)
    y, x = np.argwhere(among.label_map)[0].tolist()
    hit = int(among.label_map[y, x]) - 1
    result = asked.click([(x, y)], among=among)
    expected = asked.click([(x, y)], mask=torch.from_numpy(among.masks[hit]))
    assert np.array_equal(result.logits, expected.logits) and result.prompts == (PROMPTS[among.prompt_index[hit]],)
    assert not np.array_equal(result.logits, asked.click([(x, y)]).logits)


def test_a_mask_of_pixels_is_reduced_as_sam2_does():
    """As SAM2's video predictor reduces a mask of its input's size."""
    mask = np.zeros((128, 128), bool)
    mask[13:90, 41:42], mask[100:, 7:99] = True, True
    model = SimpleNamespace(use_obj_ptrs_in_encoder=False, hidden_dim=4, pred_obj_scores=False)
    expected, *_ = SAM2Base._use_mask_as_output(model, None, None, torch.from_numpy(mask)[None, None])
    assert torch.equal(mask_logits(mask, 32, mask.shape), expected[0, 0])
