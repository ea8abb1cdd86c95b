"""What the predictor keeps: asked bit by bit equals asked at once, nothing is computed twice, files in and out."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

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
    """Prompts encoded and rows decoded by a predictor from now on."""

    def count(predictor):
        counted = {"prompts": 0, "rows": 0, "images": 0}
        model = predictor.model
        encode, decode, images = model.encode_prompts, model.mask_decoder.forward, model.encode_images

        def encode_prompts(inputs, prompts, index):
            counted["prompts"] += len(prompts)
            return encode(inputs, prompts, index)

        def forward(features, tokens, *rest, **options):
            counted["rows"] += len(tokens.queries)
            return decode(features, tokens, *rest, **options)

        def encode_images(pixels):
            counted["images"] += len(pixels)
            return images(pixels)

        monkeypatch.setattr(model, "encode_prompts", encode_prompts)
        monkeypatch.setattr(model.mask_decoder, "forward", forward)
        monkeypatch.setattr(model, "encode_images", encode_images)
        return counted

    return count


def rows_of(predictor, prompts, **options):
    inference = image_session.replace(predictor.model.inference, **options)
    return predictor._image.rows(prompts, inference)


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", ["confident", "all"])
@pytest.mark.parametrize("two_stage", [False, True])
def test_asked_bit_by_bit_equals_asked_at_once(make, interaction, two_stage, keep):
    opts = ("MODEL.ADAPTER.INTERACTION", interaction)
    bit_by_bit, fresh = make(*opts), make(*opts)
    options = {"two_stage": two_stage, "two_stage_keep": keep}
    for prompts in (["cat"], ["grass", "cat"], ["grass"], PROMPTS, ["cat", "cat", "a dog"]):
        ours = rows_of(bit_by_bit, prompts, **options)
        fresh._image = image_session.AskedImage(fresh.model, fresh._image.encoded)
        assert_same(ours, rows_of(fresh, prompts, **options))


def test_only_new_prompts_are_encoded_and_decoded(make, counts, interaction):
    predictor = make("MODEL.ADAPTER.INTERACTION", interaction)
    counted = counts(predictor)
    k = predictor.model.adapter.num_queries
    predictor.predict(PROMPTS)
    assert counted == {"prompts": 3, "rows": 3 * k, "images": 0}
    predictor.predict([*PROMPTS, "a dog"], "panoptic")
    assert counted == {"prompts": 4, "rows": (4 if interaction == "prompt" else 7) * k, "images": 0}
    predictor.predict(["grass"])
    assert counted == {"prompts": 4, "rows": (4 if interaction == "prompt" else 8) * k, "images": 0}


def test_the_rows_of_the_oldest_prompts_are_forgotten(make, counts, monkeypatch):
    predictor = make()
    k = predictor.model.adapter.num_queries
    monkeypatch.setattr(asked_image, "ROW_BYTES", 2 * k * 4 * 32 * 32)
    counted = counts(predictor)
    predictor.predict(PROMPTS)
    predictor.predict(["a dog"])
    assert list(predictor._image._logits_and_scores) == ["a blue ball", "a dog"]
    predictor.predict(["a blue ball"])
    assert counted["rows"] == 4 * k
    predictor.predict(["cat", "a blue ball"])
    assert counted == {"prompts": 4, "rows": 5 * k, "images": 0}
    assert all(
        kept.untyped_storage().nbytes() == kept.nbytes for kept, _ in predictor._image._logits_and_scores.values()
    )


def test_a_loaded_image_equals_the_encoded_one(make, counts, tiny_cfg, tmp_path):
    predictor, other = make(), OpenWorldSAMPredictor(tiny_cfg)
    predictor.save_image(tmp_path / "cat.safetensors")
    counted = counts(other)
    other.load_image(tmp_path / "cat.safetensors")
    expected, loaded = predictor.predict(PROMPTS), other.predict(PROMPTS)
    assert counted["images"] == 0 and len(expected.masks)
    assert np.array_equal(expected.masks, loaded.masks) and np.array_equal(expected.scores, loaded.scores)


def test_saving_without_an_image_is_an_error(predictor, tmp_path):
    with pytest.raises(ValueError, match="set_image"):
        predictor.save_image(tmp_path / "cat.safetensors")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.PRECISION", "bf16"), "its MODEL.PRECISION is fp32, not bf16"),
        (("INPUT.ANTIALIAS", "True"), "its INPUT.ANTIALIAS is False, not True"),
    ],
)
def test_a_file_of_another_model_is_refused(make, tmp_path, opts, message):
    make().save_image(tmp_path / "cat.safetensors")
    with pytest.raises(ValueError, match=message):
        make(*opts).load_image(tmp_path / "cat.safetensors")


def test_a_file_of_other_weights_is_refused(make, tmp_path):
    predictor = make()
    predictor.save_image(tmp_path / "cat.safetensors")
    sam2 = predictor.sources["sam2"]
    predictor.sources["sam2"] = image_session.replace(sam2, fingerprint="0" * 16)
    with pytest.raises(ValueError, match=f"SAM2 fingerprint is {sam2.fingerprint}, not 0000"):
        predictor.load_image(tmp_path / "cat.safetensors")


def test_a_damaged_file_is_named_and_leaves_the_last_image(make, tmp_path):
    predictor, path = make(), tmp_path / "cat.safetensors"
    predictor.save_image(path)
    before, whole = predictor.predict(PROMPTS), path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (whole[:-9], b"not a file", b"", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cat\.safetensors is damaged"):
            predictor.load_image(path)
    path.write_bytes(whole)
    save_file(load_file(path), tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no image that save_image wrote"):
        predictor.load_image(tmp_path / "foreign.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        predictor.load_image(tmp_path / "nowhere.safetensors")
    assert np.array_equal(predictor.predict(PROMPTS, "instance").masks, before.masks)
