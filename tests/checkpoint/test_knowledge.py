from pathlib import Path

import pytest

from openworldsam.checkpoint import Source, knowledge, photograph_warning
from openworldsam.download import REGISTRY

ROOT = Path(__file__).parents[2]
SHAPES_ENCODER = "trained on the Shapes world, 12000 steps of 8 scenes"


def sources(trained_on, note):
    """Sources of an adapter with some training sets, and of encoders with a note."""
    encoders = {name: Source(f"{name}.safetensors", name, "0", note) for name in ("sam2", "beit3")}
    return {"adapter": Source("adapter.safetensors", "adapter", "0", "", trained_on), **encoders}


@pytest.mark.parametrize(
    ("trained_on", "note"),
    [
        ("", SHAPES_ENCODER),  # the weights that ship
        ("shapes_train", SHAPES_ENCODER),
        ("shapes_train, shapes_refer_train", ""),
        ("", f"{SHAPES_ENCODER}; memory: 1500 steps of 4 clips"),
    ],
)
def test_weights_that_know_only_shapes_warn_of_photographs(trained_on, note):
    assert knowledge(sources(trained_on, note)).startswith("These weights know only the synthetic Shapes world")
    warning = photograph_warning(sources(trained_on, note))
    assert "Shapes world" in warning and "on a photograph their masks mean nothing" in warning
    assert len(warning.splitlines()) == 1


@pytest.mark.parametrize(
    "trained_on", ["coco_2017_train_panoptic_openworldsam, shapes_train", "reef", "shapes_of_reef"]
)
def test_an_adapter_trained_on_anything_else_does_not(trained_on):
    assert knowledge(sources(trained_on, SHAPES_ENCODER)) == f"The adapter was trained on {trained_on}."
    assert photograph_warning(sources(trained_on, SHAPES_ENCODER)) == ""


@pytest.mark.parametrize("note", ["", "from model_final.pth (released), not trained on the Shapes world"])
def test_weights_without_a_record_say_nothing(note):
    assert knowledge(sources("", note)) == photograph_warning(sources("", note)) == ""


def test_the_command_it_names_fetches_files():
    words = photograph_warning(sources("shapes_train", "")).split("openworldsam download ")[1].split(",")[0].split()
    assert set(words) <= REGISTRY.keys() and len(words) == 2
