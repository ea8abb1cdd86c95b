"""The inputs that the attacks spoil."""

from pathlib import Path

import pytest
from world import contents, make_world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def world(tiny_weights, tmp_path_factory):
    """Folder of good inputs, see world.py; at the end they must be as they were."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, ROOT, tiny_weights)
    before = contents(folder)
    yield folder
    assert contents(folder) == before
