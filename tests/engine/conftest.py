"""Shared fixtures: small training sets, and configs of trainings on them."""

import pytest
from trainings import make_dataset, training_cfg

from openworldsam.data.datasets.catalog import PanopticFiles, register_panoptic
from openworldsam.data.datasets.coco import CATEGORIES


@pytest.fixture
def data(tmp_path):
    """A training set that the test may change."""
    return make_dataset(tmp_path / f"data_{tmp_path.name}")


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory):
    """A training set that no test changes."""
    return make_dataset(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture
def make_cfg(data, tiny_weights, tmp_path):
    """Make the config of a training into a folder, some keys changed."""
    return lambda folder="out", *opts: training_cfg(data, tiny_weights, tmp_path / folder, *opts)


@pytest.fixture
def cfg(make_cfg):
    return make_cfg()


@pytest.fixture
def coco_sample(shared):
    """Name of a dataset of three real COCO images with their panoptic ground truth."""
    folder = shared / "data/coco_panoptic_sample"
    files = PanopticFiles(str(folder / "panoptic.json"), str(folder / "images"), str(folder / "panoptic"))
    register_panoptic("coco_sample", files, CATEGORIES)
    return "coco_sample"
