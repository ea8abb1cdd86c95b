"""What a prediction says of itself."""

import pytest
import torch

from openworldsam.inference import Found
from openworldsam.predictor.prediction import Prediction


def prediction(task, labels=(), prompts=("zebra", "grass"), threshold=0.7, best=0.0):
    masks = torch.zeros(len(labels), 2, 4, dtype=torch.bool)
    masks[:, 0] = True
    scores, evidence = torch.full((len(labels),), 0.9), torch.zeros(len(labels), 2)
    found = Found(masks, scores, torch.tensor(labels, dtype=torch.long), evidence)
    is_thing = [True] * len(prompts)
    return Prediction.of(found, task, prompts, is_thing=is_thing, threshold=threshold, best_score=best)


@pytest.mark.parametrize(
    ("arguments", "summary"),
    [
        ({"task": "instance", "labels": (0, 1, 0), "best": 0.9}, "zebra 2, grass 1"),
        ({"task": "panoptic", "labels": (1,), "best": 0.9}, "zebra 0, grass 1"),
        ({"task": "instance", "labels": (7, 29), "prompts": tuple(map(str, range(30)))}, "7 1, 29 1"),
        ({"task": "instance", "best": 0.62}, "no mask passed the threshold 0.7 (best 0.62)"),
        ({"task": "instance", "best": 0.6999}, "no mask passed the threshold 0.7 (best 0.69)"),
        ({"task": "panoptic", "best": 0.75, "threshold": 0.75}, "no mask passed the threshold 0.75 (best 0.75)"),
        ({"task": "instance", "best": 0.75, "threshold": 0.75}, "no mask has a pixel (best score 0.75)"),
        ({"task": "referring", "best": 0.62, "threshold": 0.0}, "no mask has a pixel (best score 0.62)"),
        ({"task": "referring", "best": 0.62, "threshold": 0.9}, "no mask passed the threshold 0.9 (best 0.62)"),
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
        assert nothing.summary.startswith("no mask passed the threshold 0.99 (best 0.")
    assert predictor.predict([]).summary == "nothing was asked for"
    assert predictor.predict([], "panoptic").logits is None and predictor.predict([]).logits.shape == (0, 32, 32)


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
