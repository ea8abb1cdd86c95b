"""What the predictor keeps: asked bit by bit equals asked at once, nothing is computed twice."""

from dataclasses import replace

import pytest
import torch

from openworldsam import OpenWorldSAMPredictor
from openworldsam.predictor import image_session

PROMPTS = ["cat", "grass", "a blue ball"]


@pytest.fixture(params=["prompt", "image"])
def interaction(request):
    return request.param


@pytest.fixture
def make(tiny_cfg, photograph):
    """A predictor with a picture, some config keys changed."""

    def new(*opts):
        predictor = OpenWorldSAMPredictor(tiny_cfg, opts=opts)
        predictor.set_image(photograph)
        return predictor

    return new


@pytest.fixture
def counts(monkeypatch):
    """Prompts encoded and queries decoded by a predictor from now on."""

    def count(predictor):
        counted = {"prompts": 0, "queries": 0, "images": 0}
        model = predictor.model
        encode, decode, images = model.encode_prompts, model.mask_decoder.forward, model.encode_images

        def encode_prompts(inputs, prompts, index):
            counted["prompts"] += len(prompts)
            return encode(inputs, prompts, index)

        def forward(features, tokens, *rest, **options):
            counted["queries"] += len(tokens.queries)
            return decode(features, tokens, *rest, **options)

        def encode_images(pixels):
            counted["images"] += len(pixels)
            return images(pixels)

        monkeypatch.setattr(model, "encode_prompts", encode_prompts)
        monkeypatch.setattr(model.mask_decoder, "forward", forward)
        monkeypatch.setattr(model, "encode_images", encode_images)
        return counted

    return count


def queries_of(predictor, prompts, **options):
    inference = replace(predictor.model.inference, **options)
    return predictor.session.queries(prompts, inference)


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[:4], theirs[:4], rtol=1e-4, atol=1e-5)
    assert ours.rule == theirs.rule


@pytest.mark.parametrize("keep", ["confident", "all"])
@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.parametrize("score", ["iou", "match"])
def test_asked_bit_by_bit_equals_asked_at_once(make, head_opts, interaction, two_stage, keep, score):
    opts = ("MODEL.ADAPTER.INTERACTION", interaction, *(head_opts if score == "match" else ()))
    bit_by_bit = make(*opts)
    options = {"two_stage": two_stage, "two_stage_keep": keep, "score": score}
    for prompts in (["cat"], ["grass", "cat"], ["grass"], PROMPTS, ["cat", "cat", "a dog"]):
        ours = queries_of(bit_by_bit, prompts, **options)
        fresh = make(*opts)
        assert_same(ours, queries_of(fresh, prompts, **options))


def test_only_new_prompts_are_encoded_and_decoded(make, counts, interaction):
    predictor = make("MODEL.ADAPTER.INTERACTION", interaction)
    counted = counts(predictor)
    k = predictor.model.adapter.num_queries
    predictor.predict(PROMPTS)
    assert counted == {"prompts": 3, "queries": 3 * k, "images": 0}
    predictor.predict([*PROMPTS, "a dog"], "panoptic")
    assert counted == {"prompts": 4, "queries": (4 if interaction == "prompt" else 7) * k, "images": 0}
    predictor.predict(["grass"])
    assert counted == {"prompts": 4, "queries": (4 if interaction == "prompt" else 8) * k, "images": 0}


def test_the_queries_of_the_oldest_prompts_are_forgotten(make, counts, monkeypatch):
    predictor = make()
    k = predictor.model.adapter.num_queries
    monkeypatch.setattr(image_session, "LOGIT_BYTES", 2 * k * 4 * 32 * 32)
    counted = counts(predictor)
    predictor.predict(PROMPTS)
    predictor.predict(["a dog"])
    assert list(predictor.session._kept) == ["a blue ball", "a dog"]
    predictor.predict(["a blue ball"])
    assert counted["queries"] == 4 * k
    predictor.predict(["cat", "a blue ball"])
    assert counted == {"prompts": 4, "queries": 5 * k, "images": 0}
    logits = [kept.logits for kept in predictor.session._kept.values()]
    assert all(kept.untyped_storage().nbytes() == kept.nbytes for kept in logits)
