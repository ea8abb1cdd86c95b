from pathlib import Path
from threading import Lock

import pytest

from openworldsam import OpenWorldSAMPredictor
from openworldsam.app.examples import examples
from openworldsam.app.session import Session
from openworldsam.config import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shapes():
    """A predictor with the weights of the Shapes world."""
    cfg = load_config(ROOT / "configs/shapes/openworldsam.yaml")
    encoder = cfg.MODEL.PROMPT_ENCODER
    for node, key in (
        (cfg.MODEL, "WEIGHTS"),
        (cfg.MODEL.SAM2, "WEIGHTS"),
        (encoder, "WEIGHTS"),
        (encoder, "TOKENIZER"),
    ):
        node[key] = str(ROOT / node[key])
    return OpenWorldSAMPredictor(cfg)


@pytest.fixture(scope="session")
def scenes(shapes):
    """The examples by task."""
    return {example.task: example for example in examples(shapes.cfg)}


@pytest.fixture
def session(shapes, scenes):
    """A session with the example for instances; nothing is asked yet."""
    return Session(shapes, Lock(), scenes["instance"].image, "scene.png")
