"""What a prediction says of itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openworldsam import OpenWorldSAMPredictor
from openworldsam.inference import Found
from openworldsam.predictor.prediction import Prediction
from openworldsam.utils.text import rounded_down
from openworldsam.visualization import draw_masks, draw_prediction

ROOT = Path(__file__).parents[2]

MANY = tuple(map(str, range(30)))


def prediction(task, labels=(), prompts=("zebra", "grass"), threshold=0.7, best=0.0, rule="iou", **about):
    masks = torch.zeros(len(labels), 2, 4, dtype=torch.bool)
    masks[:, 0] = True
    scores, evidence = torch.full((len(labels),), 0.9), torch.zeros(len(labels), 2)
    found = Found(masks, scores, torch.tensor(labels, dtype=torch.long), evidence)
    is_thing = [True] * len(prompts)
    about |= {"rule": rule, "threshold": threshold, "best_scores": np.broadcast_to(best, len(prompts))}
    return Prediction.of(found, task, prompts, is_thing=is_thing, **about)


@pytest.mark.parametrize(
    ("arguments", "summary"),
    [
        ({"task": "instance", "labels": (0, 1, 0), "best": 0.9}, "zebra 2, grass 1"),
        ({"task": "instance", "labels": (1,), "best": (0.6999, 0.9)}, "zebra not found (best 0.69), grass 1"),
        ({"task": "panoptic", "labels": (1,), "best": (0.8, 0.9)}, "zebra covered by others (best 0.80), grass 1"),
        (
            {"task": "semantic", "labels": (0,), "best": (0.8, 0.3), "threshold": 0},
            "zebra 1, grass not found (best 0.30)",
        ),
        ({"task": "instance", "labels": (7, 29), "prompts": MANY}, "7 1, 29 1, 28 not found"),
        ({"task": "instance", "best": (0.62, 0.1)}, "no mask passed the threshold 0.7 (best predicted IoU 0.62)"),
        (
            {"task": "instance", "best": 0.31, "rule": "match", "threshold": 0.5},
            "no mask passed the threshold 0.5 (best match score 0.31)",
        ),
        ({"task": "instance", "best": 0.6999}, "no mask passed the threshold 0.7 (best predicted IoU 0.69)"),
        (
            {"task": "panoptic", "best": 0.75, "threshold": 0.75, "rule": "product"},
            "no mask passed the threshold 0.75 (best match score x predicted IoU 0.75)",
        ),
        ({"task": "instance", "best": 0.75, "threshold": 0.75}, "no mask has a pixel (best predicted IoU 0.75)"),
        ({"task": "referring", "best": 0.62, "threshold": 0.0}, "no mask has a pixel (best predicted IoU 0.62)"),
        (
            {"task": "referring", "best": 0.62, "threshold": 0.9},
            "no mask passed the threshold 0.9 (best predicted IoU 0.62)",
        ),
        ({"task": "instance", "prompts": ()}, "nothing was asked for"),
    ],
)
def test_summary(arguments, summary):
    assert prediction(**arguments).summary == summary


def test_the_predictor_says_which_threshold_a_mask_had_to_pass(predictor, photograph):
    predictor.set_image(photograph)
    assert predictor.predict(["cat"]).threshold == 0.3
    assert predictor.predict(["cat"], "semantic", score_threshold=0.9).threshold == 0
    assert predictor.predict(["cat"], "referring").threshold == 0
    for task in ("instance", "panoptic", "referring"):
        nothing = predictor.predict(["cat"], task, score_threshold=0.99)
        assert nothing.summary.startswith("no mask passed the threshold 0.99 (best predicted IoU 0.")
    assert predictor.predict([]).summary == "nothing was asked for"
    assert predictor.predict([], "panoptic").logits is None and predictor.predict([]).logits.shape == (0, 32, 32)


def test_prompts_without_a_mask_are_told_apart():
    made = prediction("instance", labels=(1, 1), prompts=("zebra", "grass", "sky"), best=(0.25, 0.9, 0.5))
    assert made.not_found == {"zebra": 0.25, "sky": 0.5} and made.best_score == np.float32(0.9)
    assert prediction("instance", prompts=()).not_found == {} and prediction("instance", prompts=()).best_score == 0


@pytest.fixture
def matching(matching_opts, photograph):
    """A predictor with a random score head, and a picture."""
    made = OpenWorldSAMPredictor(ROOT / "configs/tiny.yaml", opts=matching_opts)
    made.set_image(photograph)
    return made


PROMPTS = ["cat", "grass", "a blue ball"]


def test_a_threshold_between_the_match_scores_finds_some_prompts(matching):
    best = matching.predict(PROMPTS, score_threshold=0).best_scores
    between = float(np.sort(best)[1:].mean())
    found = matching.predict(PROMPTS, score_threshold=between)
    (index,) = np.unique(found.prompt_index)
    assert index == best.argmax() and found.rule == "match"
    np.testing.assert_array_equal(found.best_scores, best)
    missing = {PROMPTS[i]: best[i] for i in range(3) if i != index}
    assert found.not_found == missing
    assert all(f"{prompt} not found (best {rounded_down(score)})" in found.summary for prompt, score in missing.items())


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic", "referring"])
def test_both_scores_are_in_the_result_whichever_counts(matching, predictor, photograph, task):
    by_match = matching.predict(PROMPTS, task, score="match", score_threshold=0.0)
    assert len(by_match.masks) and np.array_equal(by_match.scores, by_match.match)
    by_iou = matching.predict(PROMPTS, task, score="iou", score_threshold=0.0)
    assert len(by_iou.masks) and np.array_equal(by_iou.scores, by_iou.predicted_iou)
    assert by_iou.evidence(0).keys() == by_match.evidence(0).keys() == {"predicted_iou", "match"}
    predictor.set_image(photograph)
    plain = predictor.predict(PROMPTS, task, score_threshold=0.0)
    assert plain.evidence(0) == {"predicted_iou": plain.scores[0]} and np.isnan(plain.match).all()
    np.testing.assert_allclose(plain.scores, by_iou.scores)


def test_another_score_brings_its_threshold_but_expressions_have_none(matching, predictor, photograph):
    assert (matching.predict(PROMPTS).threshold, matching.predict(PROMPTS, score="iou").threshold) == (0.5, 0.3)
    assert matching.predict(PROMPTS, "referring", score="iou").threshold == 0
    assert len(matching.predict(PROMPTS, "referring", score="product").masks) == len(PROMPTS)


def test_clicks_keep_the_predicted_iou(matching):
    clicked = matching.click([(100, 100)])
    assert clicked.rule == "iou" and np.array_equal(clicked.scores, clicked.predicted_iou)
    assert clicked.evidence(0).keys() == {"predicted_iou"}


def test_the_logits_are_those_of_the_masks(predictor, photograph):
    predictor.set_image(photograph)
    for task in ("instance", "referring"):
        result = predictor.predict(["cat", "grass"], task)
        assert len(result.logits) == len(result.masks) > 0
        full_size = torch.nn.functional.interpolate(
            torch.from_numpy(result.logits)[None], result.label_map.shape, mode="bilinear"
        )[0]
        assert ((full_size > 0).numpy() == result.masks).all()
    assert predictor.predict(["cat"], "semantic").logits is None


def test_iteration_gives_every_mask_with_its_box_score_and_prompt():
    made = prediction("instance", labels=(1, 0))
    assert len(made) == 2 and len(prediction("instance")) == 0 and list(prediction("instance")) == []
    for n, (mask, box, score, prompt) in enumerate(made):
        assert np.array_equal(mask, made.masks[n]) and box.tolist() == [0, 0, 4, 1]
        assert score == made.scores[n] and type(score) is float and prompt == ("grass", "zebra")[n]
    assert made[-1].prompt == "zebra"
    with pytest.raises(IndexError):
        made[2]


def test_the_repr_is_a_line():
    made = prediction("instance", labels=(1,), best=(0.25, 0.9))
    assert repr(made) == "<Prediction instance, 4 x 2 pixels: zebra not found (best 0.25), grass 1>"


def test_a_result_draws_itself(predictor, photograph, tmp_path):
    result = predictor(photograph, PROMPTS)
    picture = np.asarray(Image.open(photograph).convert("RGB"))
    assert np.array_equal(result.image, picture) and result.path == str(photograph)
    drawn = draw_prediction(picture, result)
    assert np.array_equal(np.asarray(result.plot()), drawn)
    masks = draw_masks(picture[::-1], result, alpha=1.0)
    assert np.array_equal(np.asarray(result.plot(legend=False, alpha=1.0, image=picture[::-1])), masks)
    for name, kind in (("a.png", "PNG"), ("b.JPG", "JPEG"), ("c.webp", "WEBP")):
        result.save(tmp_path / "new" / name)
        with Image.open(tmp_path / "new" / name) as saved:
            assert saved.format == kind and saved.size == drawn.shape[1::-1]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new/a.png")), drawn)
    for name in ("a", "a.mp4", "a.svg"):
        with pytest.raises(ValueError, match=rf"{name}' must end in the suffix of an image file, such as \.png"):
            result.save(name)


def test_a_click_draws_itself_too(predictor, photograph):
    predictor.set_image(photograph)
    clicked = predictor.click([(100, 100)])
    assert np.array_equal(np.asarray(clicked.plot()), draw_prediction(clicked.image, clicked))


def test_show_opens_the_picture(predictor, photograph, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(np.asarray(picture)))
    result = predictor(photograph, PROMPTS)
    result.show()
    assert len(shown) == 1 and np.array_equal(shown[0], np.asarray(result.plot()))


def test_a_result_without_its_image_asks_for_it():
    made = prediction("instance", labels=(1,))
    with pytest.raises(ValueError, match=r"does not hold its image: give it, plot\(image=...\)"):
        made.plot()
    with pytest.raises(ValueError, match="for this image"):
        made.plot(image=np.zeros((3, 3, 3), np.uint8))
    assert made.plot(image=np.zeros((2, 4, 3), np.uint8)).width >= 448
