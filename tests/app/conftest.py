from pathlib import Path

import pytest

from openworldsam import OpenWorldSAMPredictor
from openworldsam.app.examples import example_questions
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
    """The examples by task."""
    return {example.task: example for example in example_questions(shapes.cfg)}


@pytest.fixture
def begin(shapes, scenes):
    """Begin a session with an example image; nothing is asked yet."""
    return lambda task: Session(shapes, scenes[task].image, "scene.png", max_work=10**9)


@pytest.fixture
def session(begin):
    """A session with the example for instances."""
    return begin("instance")
