import numpy as np
import pytest

from openworldsam.annotate.images import LoadedImage
from openworldsam.annotate.prompts import Prompts
from openworldsam.annotate.results import FolderResults


@pytest.fixture
def prompts():
    """Prompts with characters that XML must escape."""
    return Prompts(("a cat", 'grass & "sand" <1>', "dog"), (True, False, True))


@pytest.fixture
def made(prompts, predicted):
    """A random image and prediction: masks with holes and parts, some overlapping where the task allows it."""

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
        about = {"prompts": prompts.texts, "is_thing": prompts.is_thing, "task": task}
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        return LoadedImage(name, pixels, (1, 2)), predicted(masks, scores, labels, **about)

    return make


@pytest.fixture
def names():
    """Image names with characters that URLs and XML must escape; the second has no results."""
    return ["b #1.jpg", "lost.jpg", "sub/a & \u00e9.png"]


@pytest.fixture
def saved(made, prompts, names, tmp_path):
    """Save results of two of the three images; return them and the predictions by name."""

    def save(task):
        results, found = FolderResults(tmp_path / "out", names, prompts, task), {}
        for seed, name in ((1, names[0]), (2, names[2])):
            image, found[name] = made(name, (37, 53 + seed), task, 3 if task == "semantic" else 5, seed)
            results.save(image, found[name])
        return results, found

    return save
