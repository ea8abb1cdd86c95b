"""Weight files of every public layout, and the tiny model that they fit."""

import logging
from pathlib import Path

import pytest
from published import beit3_state, evf_projector, our_adapter, released_adapter, sam2_state, write_all

from openworldsam.config import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"


@pytest.fixture(scope="session")
def make_cfg():
    """The tiny config at SAM2's own width; SAM2__WIDTH=64 means MODEL.SAM2.WIDTH 64."""

    def make(**keys):
        keys = {"WEIGHTS": "", "SAM2__WIDTH": 256, **keys}
        opts = [word for key, value in keys.items() for word in (f"MODEL.{key.replace('__', '.')}", str(value))]
        return load_config(CONFIG, opts)

    return make


@pytest.fixture(scope="session")
def states():
    return {
        "2.0": sam2_state("2.0", seed=10),
        "2.1": sam2_state("2.1", seed=11),
        "beit3": beit3_state(),
        "released adapter": released_adapter(),
        "adapter": our_adapter(released_adapter()),
        "evf projector": evf_projector(),
    }


@pytest.fixture(scope="session")
def files(states, tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("layouts"), states)


@pytest.fixture
def log(caplog):
    with caplog.at_level(logging.WARNING, logger="openworldsam"):
        yield caplog
