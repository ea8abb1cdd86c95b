from pathlib import Path

import pytest

from openworldsam import OpenWorldSAMPredictor
from openworldsam.app import examples
from openworldsam.app.session import Session

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shapes(paper_opts):
    """A predictor with the weights of the Shapes world."""
    return OpenWorldSAMPredictor(ROOT / "configs/shapes/paper.yaml", opts=paper_opts)


@pytest.fixture(scope="session")
def matching(matching_opts):
    """A tiny predictor with a random score head."""
    return OpenWorldSAMPredictor(ROOT / "configs/tiny.yaml", opts=matching_opts)


@pytest.fixture(scope="session")
def scenes(shapes):
    """Four questions by task, whatever the examples of the page are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "SCENES", {38: "panoptic", 13: "instance", 2: "semantic", 11: "referring"})
        return {example.task: example for example in examples.example_questions(shapes.cfg)}


@pytest.fixture
def begin(shapes, scenes):
    """Begin a session with an example image; nothing is asked yet."""
    return lambda task: Session(shapes, scenes[task].image, "scene.png", max_work=10**9)


@pytest.fixture
def session(begin):
    """A session with the example for instances."""
    return begin("instance")
