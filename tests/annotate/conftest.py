import numpy as np
import pytest
import torch

from openworldsam.annotate.pictures import Picture, Stamp
from openworldsam.annotate.prompts import Prompts
from openworldsam.annotate.results import Results
from openworldsam.inference import Found
from openworldsam.predictor.prediction import Prediction


@pytest.fixture
def prompts():
    """With what must be escaped in XML."""
    return Prompts(("a cat", 'grass & "sand" <1>', "dog"), (True, False, True))


@pytest.fixture
def made(prompts):
    """A random picture and prediction: masks with holes and parts, of which some overlap where they may."""

    def make(name="a.png", size=(37, 53), task="instance", count=5, seed=0):
        generator = np.random.default_rng(seed)
        masks = generator.random((count, *size)) < 0.4
        if task in ("panoptic", "semantic"):
            owner = generator.integers(0, count + 1, size)
            masks = owner == np.arange(1, count + 1)[:, None, None]
        elif count > 1:  # all pixels, one pixel
            masks[0], masks[1] = True, False
            masks[1, 3, -1] = True
        scores, labels = generator.random(count, dtype=np.float32), np.arange(count) % len(prompts.texts)
        found = Found(*map(torch.from_numpy, (masks, scores, labels)))
        about = {"is_thing": prompts.is_thing, "threshold": 0.0, "best_score": 0.9}
        prediction = Prediction.of(found, task, prompts.texts, **about)
        return Picture(name, generator.integers(0, 256, (*size, 3), dtype=np.uint8), Stamp(1, 2)), prediction

    return make


@pytest.fixture
def names():
    """Of pictures, with what must be escaped in addresses and in XML; there are no results of the second."""
    return ["b #1.jpg", "lost.jpg", "sub/a & \u00e9.png"]


@pytest.fixture
def saved(made, prompts, names, tmp_path):
    """Save results of two of the three pictures; gives them, and what was found by name."""

    def save(task):
        results, found = Results(tmp_path / "out", prompts, task), {}
        for seed, name in ((1, names[0]), (2, names[2])):
            picture, found[name] = made(name, (37, 53 + seed), task, 3 if task == "semantic" else 5, seed)
            results.save(picture, found[name])
        return results, found

    return save
