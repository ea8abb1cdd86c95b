import numpy as np
import pytest
import torch
from PIL import Image

from openworldsam import OpenWorldSAMPredictor
from openworldsam.checkpoint import photograph_warning
from openworldsam.data.datasets.coco import COCO_STUFF

PROMPTS = ["cat", "grass", "a blue ball"]


@pytest.fixture
def asked(predictor, photograph):
    """A predictor with a picture."""
    predictor.set_image(photograph)
    return predictor


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic", "referring"])
def test_values_beyond_the_number_format_are_one_clear_error(asked, task, monkeypatch):
    monkeypatch.setattr(
        asked.model.adapter.tie_breakers, "data", torch.full_like(asked.model.adapter.tie_breakers, 1e38)
    )
    with pytest.raises(ValueError, match="the masks are not finite numbers"):
        asked.predict(PROMPTS, task)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic", "referring"])
@pytest.mark.parametrize("two_stage", [False, True])
def test_results_are_consistent(asked, task, two_stage):
    result = asked.predict(PROMPTS, task, two_stage=two_stage, nms_threshold=0.95)
    n = len(result.masks)
    assert n > 0
    assert result.task == task and result.prompts == tuple(PROMPTS)
    assert result.masks.shape == (n, 300, 451) and result.masks.dtype == bool
    assert result.scores.shape == result.prompt_index.shape == result.is_thing.shape == (n,)
    assert result.boxes.shape == (n, 4)
    assert result.label_map.shape == (300, 451)
    assert result.masks.any(axis=(1, 2)).all()
    for mask, (x0, y0, x1, y1) in zip(result.masks, result.boxes.astype(int), strict=True):
        ys, xs = np.nonzero(mask)
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
    assert result.best_score >= result.scores.max()
    assert result.is_thing.tolist() == [PROMPTS[p] != "grass" for p in result.prompt_index]
    assert ((result.label_map > 0) == result.masks.any(axis=0)).all()
    if task in ("semantic", "panoptic"):
        assert result.masks.sum(axis=0).max() == 1
        for i, mask in enumerate(result.masks):
            assert ((result.label_map == i + 1) == mask).all()
    if task == "semantic":
        assert (result.label_map > 0).all()
    if task == "referring":
        assert result.prompt_index.tolist() == sorted(set(result.prompt_index.tolist()))


def test_overlaps_go_to_the_smaller_mask(asked):
    result = asked.predict(PROMPTS, nms_threshold=1.0)
    assert result.masks.sum(axis=0).max() > 1
    for y, x in np.argwhere(result.masks.sum(axis=0) > 1)[::997]:
        covering = np.flatnonzero(result.masks[:, y, x])
        winner = result.label_map[y, x] - 1
        areas = result.masks.sum(axis=(1, 2))
        assert winner in covering and areas[winner] == areas[covering].min()


def test_nothing_passes_a_high_threshold(asked):
    result = asked.predict(PROMPTS, score_threshold=1.0)
    assert len(result.masks) == 0 and not result.label_map.any()
    assert 0 < result.best_score < 1


def test_the_image_and_the_same_question_are_computed_once(asked, monkeypatch):
    first = asked.predict(PROMPTS)
    monkeypatch.setattr(asked.model, "encode_prompts", None)  # would fail if called
    monkeypatch.setattr(asked.model, "encode_images", None)
    again = asked.predict(PROMPTS)
    assert np.array_equal(first.masks, again.masks)
    asked.predict(PROMPTS, "panoptic", score_threshold=0.1)


def test_a_new_image_forgets_the_old_one(tiny_cfg, photograph):
    picture = np.asarray(Image.open(photograph))
    used, fresh = OpenWorldSAMPredictor(tiny_cfg), OpenWorldSAMPredictor(tiny_cfg)
    used.set_image(picture)
    used.predict(PROMPTS, "referring")
    for predictor in (used, fresh):
        predictor.set_image(picture[::-1].copy())
    assert np.array_equal(used.predict(PROMPTS, "referring").scores, fresh.predict(PROMPTS, "referring").scores)


def test_path_pil_array_and_tensor_give_the_same(asked, photograph):
    expected = asked.predict(PROMPTS, "referring").scores
    array = np.asarray(Image.open(photograph).convert("RGB"))
    tensor = torch.from_numpy(array.transpose(2, 0, 1).copy())
    for source in (str(photograph), Image.open(photograph), array, tensor, tensor / 255):
        assert np.array_equal(asked(source, PROMPTS, "referring").scores, expected)
    assert asked.session.path == str(photograph)  # still the current image


def test_times_are_of_the_stages_that_ran(asked, photograph):
    stages = ["reading", "image encoder", "prompt encoder", "decoder", "post-processing"]
    times = asked.predict(PROMPTS, image=photograph, times=True).times
    assert list(times) == stages and min(times.values()) > 0
    assert list(asked.predict(PROMPTS, times=True).times) == stages[2:]
    assert list(asked.predict(PROMPTS, times=True).times) == stages[4:]  # the same question again
    assert asked.predict(PROMPTS).times == {}


def test_one_text_is_one_prompt(asked):
    assert asked.predict("zebra", "referring").prompts == ("zebra",)


def test_equal_prompts_are_one(asked):
    once = asked.predict(["a cat", "sky"], "panoptic")
    several = asked.predict([" a  cat", "sky\n", "a cat"], "panoptic")
    assert several.prompts == ("a cat", "sky") and np.array_equal(several.masks, once.masks)
    assert np.array_equal(several.is_thing, once.is_thing)


def test_no_prompt_gives_an_empty_result(asked):
    for task in ("semantic", "instance", "panoptic", "referring"):
        result = asked.predict([], task)
        assert result.masks.shape == (0, 300, 451) and result.best_score == 0


def test_stuff_by_name(asked):
    assert len(COCO_STUFF) == 53 and {"grass", "sky", "wall-brick", "tree"} <= COCO_STUFF
    result = asked.predict(PROMPTS, "panoptic", stuff=["cat"])
    assert all(thing == (PROMPTS[p] != "cat") for p, thing in zip(result.prompt_index, result.is_thing, strict=True))


@pytest.mark.parametrize("stuff", ["cat", [" CAT "]])
def test_stuff_may_be_one_text_of_any_case(asked, stuff):
    assert asked.predict(["Cat", "Grass"], "referring", stuff=stuff).is_thing.tolist() == [False, True]
    assert asked.predict(["Cat", " Grass"], "referring").is_thing.tolist() == [True, False]


def test_a_device_that_is_not_there_is_an_error(tiny_cfg):
    for device in ("quantum", "cuda:99"):
        with pytest.raises(ValueError, match=device):
            OpenWorldSAMPredictor(tiny_cfg, device=device)


def test_surrounding_autocast_changes_no_fp32_result(asked, photograph):
    expected = asked.predict(PROMPTS)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            asked.set_image(photograph)
            result = asked.predict(PROMPTS)
        assert np.array_equal(result.masks, expected.masks)


def test_five_hundred_prompts(asked):
    prompts = [f"thing number {i}" for i in range(500)]
    result = asked.predict(prompts, "referring")
    assert set(result.prompt_index.tolist()) <= set(range(500)) and len(result.masks) > 400
    alone = asked.predict(prompts[417:418], "referring")
    np.testing.assert_allclose(result.scores[result.prompt_index == 417], alone.scores, rtol=1e-5)


def test_a_very_long_prompt_is_cut_with_a_warning(asked, caplog):
    result = asked.predict(["word " * 2000], "referring")
    assert len(result.prompts) == 1
    assert "tokens; only the first 510 count" in caplog.text


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "a text or a list of texts"),
        (5, "got int"),
        (["cat", ""], "prompt 1 is empty"),
        (["  \n"], "prompt 0 is empty"),
        ([3], "prompt 0 is int"),
        ([None], "NoneType"),
    ],
)
def test_a_bad_prompt_is_named(asked, prompts, message):
    with pytest.raises(ValueError, match=message):
        asked.predict(prompts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "depth"}, "task is one of"),
        ({"threshold": 0.5}, "unknown option threshold"),
        ({"score_threshold": 50}, "from 0 to 1"),
        ({"score_threshold": "0.5"}, "from 0 to 1"),
        ({"instance_nms": "soft"}, "INSTANCE_NMS"),
    ],
)
def test_a_bad_argument_is_named(asked, arguments, message):
    with pytest.raises(ValueError, match=message):
        asked.predict(["cat"], **arguments)


def test_predicting_before_an_image_is_an_error(predictor):
    with pytest.raises(ValueError, match="set_image"):
        predictor.predict(["cat"])


def test_a_failed_image_leaves_the_last_one(asked, tmp_path):
    before = asked.predict(["cat"], "referring")
    (tmp_path / "no.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"no\.jpg is not a readable image"):
        asked.set_image(tmp_path / "no.jpg")
    after = asked.predict(["cat"], "referring")
    assert np.array_equal(before.masks, after.masks)


@pytest.mark.parametrize("size", [(10, 20_000), (20_000, 10), (1, 1), (3, 2)])
def test_extreme_sizes(predictor, size):
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    for task in ("semantic", "instance", "panoptic", "referring"):
        assert predictor.predict(PROMPTS, task).masks.shape[1:] == size


def test_a_missing_config_weight_or_tokenizer_file_is_named(tiny_cfg):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        OpenWorldSAMPredictor("nowhere.yaml")
    with pytest.raises(FileNotFoundError, match="download"):
        OpenWorldSAMPredictor(tiny_cfg, opts=["MODEL.WEIGHTS", "nowhere.pth"])
    with pytest.raises(ValueError, match=r"no weights: set MODEL\.WEIGHTS.*download"):
        OpenWorldSAMPredictor(tiny_cfg, opts=["MODEL.WEIGHTS", ""])
    with pytest.raises(FileNotFoundError, match="beit3_tokenizer"):
        OpenWorldSAMPredictor(tiny_cfg, opts=["MODEL.PROMPT_ENCODER.TOKENIZER", "nowhere.spm"])


def test_all_missing_files_of_a_named_config_are_named_before_a_model_is_built(monkeypatch):
    monkeypatch.setattr("openworldsam.predictor.predictor.OpenWorldSAM", None)
    files = ["MODEL.WEIGHTS", "nowhere.pth", "MODEL.PROMPT_ENCODER.TOKENIZER", "nowhere.spm"]
    with pytest.raises(FileNotFoundError, match=r"weight file nowhere\.pth and tokenizer file nowhere\.spm not found"):
        OpenWorldSAMPredictor("released", opts=files)


def test_more_queries_than_the_weights_have_but_not_fewer(tiny_cfg, head_opts, photograph):
    opts = [*head_opts, "MODEL.INFERENCE.SCORE", "match", "MODEL.ADAPTER.NUM_TIE_BREAKERS"]
    predictor = OpenWorldSAMPredictor(tiny_cfg, opts=[*opts, "20"])
    result = predictor.predict("cat", image=photograph, score_threshold=0.0, nms_threshold=1.0)
    assert len(result.masks) == 20 and len(set(result.match.tolist())) == 20
    with pytest.raises(ValueError, match="NUM_TIE_BREAKERS 4"):
        OpenWorldSAMPredictor(tiny_cfg, opts=[*opts, "3"])


ASKED = {
    "set_image": lambda predictor, image: predictor.set_image(image),
    "predict": lambda predictor, image: predictor.predict("cat", image=image),
    "predict_batch": lambda predictor, image: list(predictor.predict_batch([image, image], "cat")),
    "click": lambda predictor, image: predictor.click([(9, 9)], image=image),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_weights_that_know_no_photographs_say_so_with_the_first_image(predictor, photograph, ask, caplog):
    predictor.photograph_warning = "for shapes alone"
    with pytest.raises(FileNotFoundError):
        ask(predictor, "nowhere.jpg")
    assert not caplog.messages
    for _ in range(2):
        ask(predictor, photograph)
    assert caplog.messages == ["for shapes alone"] and caplog.records[0].levelname == "WARNING"


def test_shapes_weights_know_no_photographs(predictor):
    shapes = OpenWorldSAMPredictor("shapes")
    assert shapes.photograph_warning == photograph_warning(shapes.sources) and "only the synthetic Shapes world" in (
        shapes.photograph_warning
    )
    assert predictor.photograph_warning == ""
