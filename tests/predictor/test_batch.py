"""Many images in one call: equal to one by one, encoded together, read when their turn comes."""

import numpy as np
import pytest
import torch
from PIL import Image

from openworldsam import OpenWorldSAMPredictor, Prediction
from openworldsam.inference import TASKS

PROMPTS = ["cat", "grass", "a red cup", "sky"]


@pytest.fixture
def images(pictures, photograph):
    """Three images of different kinds and sizes."""
    first, second = pictures
    return [first.permute(1, 2, 0).numpy(), second, photograph]


def assert_same(ours, theirs):
    for field in ("task", "prompts", "threshold", "path"):
        assert getattr(ours, field) == getattr(theirs, field)
    for field in ("masks", "boxes", "prompt_index", "is_thing", "label_map", "image"):
        assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
    for field in ("scores", "best_scores", "predicted_iou", "match"):
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), atol=1e-5)
    if theirs.logits is not None:
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-3)


@pytest.mark.parametrize("interaction", ["prompt", "image"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("options", [{}, {"score_threshold": 1.0}, {"two_stage": True}])
def test_a_batch_equals_its_images_one_by_one(tiny_cfg, images, task, interaction, options):
    opts = ["MODEL.ADAPTER.INTERACTION", interaction, "TEST.PROMPT_CHUNK", "3"]
    predictor = OpenWorldSAMPredictor(tiny_cfg, opts=opts)
    predictions = list(predictor.predict_batch(images, PROMPTS, task, batch_size=2, stuff=["grass"], **options))
    for image, prediction in zip(images, predictions, strict=True):
        assert_same(prediction, predictor(image, PROMPTS, task, stuff=["grass"], **options))
    assert any(map(len, predictions)) or "score_threshold" in options


def test_a_list_gives_a_list(predictor, images):
    results = predictor(images, "cat", "referring")
    assert isinstance(results, list) and len(results) == 3
    assert_same(results[2], predictor(images[2], "cat", "referring"))
    assert predictor([], "cat") == []
    assert [len(result) for result in predictor(tuple(images), [])] == [0, 0, 0]


@pytest.mark.parametrize("many", [np.zeros((2, 9, 12, 3), np.uint8), torch.zeros(2, 3, 9, 12)])
def test_an_array_of_images(predictor, many):
    assert [result.label_map.shape for result in predictor.predict_batch(many, "cat")] == [(9, 12)] * 2


def test_images_are_encoded_together_and_read_in_their_turn(predictor, images, monkeypatch):
    encoded, read = [], []
    encode_images, encode_prompts = predictor.model.encode_images, predictor.model.encode_prompts
    monkeypatch.setattr(predictor.model, "encode_images", lambda x: encoded.append(len(x)) or encode_images(x))
    monkeypatch.setattr(
        predictor.model, "encode_prompts", lambda x, texts, i: encoded.append(len(texts)) or encode_prompts(x, texts, i)
    )
    source = (read.append(n) or images[n % 3] for n in range(5))
    results = predictor.predict_batch(source, PROMPTS, batch_size=2)
    assert encoded == read == []
    next(results)
    assert encoded == [2, 8] and read == [0, 1]
    assert len(list(results)) == 4 and encoded == [2, 8, 2, 8, 1, 4]


def test_the_current_image_stays(predictor, images):
    predictor.set_image(images[2])
    predictor(images[:2], "cat")
    assert predictor.session.path == str(images[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.jpg", "cat"), r"images are several, got one str: predict\(prompts, image=...\)"),
        ((np.zeros((9, 9, 3), np.uint8), "cat"), "got one ndarray"),
        ((torch.zeros(3, 9, 9), "cat"), "got one Tensor"),
        ((Image.new("RGB", (3, 3)), "cat"), "got one Image"),
        ((None, "cat"), "got one NoneType"),
        (([], ""), "prompt 0 is empty"),
        (([], "cat", "depth"), "task is one of"),
    ],
)
def test_a_bad_call_is_an_error_at_once(predictor, arguments, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict_batch(*arguments)


@pytest.mark.parametrize("size", [0, 1.5, "2"])
def test_a_bad_batch_size_is_named(predictor, size):
    with pytest.raises(ValueError, match="batch_size is a whole number from 1"):
        predictor.predict_batch([], "cat", batch_size=size)


def test_a_bad_image_is_named_by_its_index(predictor, images):
    results = predictor.predict_batch([*images, images[0] / 255], "cat", batch_size=3)
    assert all(isinstance(next(results), Prediction) for _ in images)
    with pytest.raises(ValueError, match="image 3: an image array is uint8"):
        next(results)
