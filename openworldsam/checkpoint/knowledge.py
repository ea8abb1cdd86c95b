"""Sentences for users about what a model's weights know, from the record of their training."""

from __future__ import annotations

from collections.abc import Mapping

from openworldsam.checkpoint.layouts import Source
from openworldsam.data.datasets.shapes import SPLITS
from openworldsam.modeling.components import ADAPTER

SHAPES_NOTE = "trained on the Shapes world"
"""Opening of the note in the file of an encoder that was trained on nothing else."""
ONLY_SHAPES = "These weights know only the synthetic Shapes world (coloured shapes on textures)"
FOR_PHOTOGRAPHS = (
    "on a photograph their masks mean nothing. For photographs: "
    "openworldsam download openworldsam_coco beit3_tokenizer, see weights/README.md."
)


def knowledge(sources: Mapping[str, Source]) -> str:
    """Say in a sentence what weights know, given the source of each component; empty if their files do not tell."""
    if _only_shapes(sources):
        return f"{ONLY_SHAPES}."
    trained_on = sources[ADAPTER.name].trained_on
    return f"The adapter was trained on {trained_on}." if trained_on else ""


def photograph_warning(sources: Mapping[str, Source]) -> str:
    """Warn a user who gives an image to weights of the Shapes world, in one line; empty for other weights.

    sources: of the components, by name, from `load_weights`.
    """
    return f"{ONLY_SHAPES}; {FOR_PHOTOGRAPHS}" if _only_shapes(sources) else ""


def _only_shapes(sources: Mapping[str, Source]) -> bool:
    """Whether an adapter was trained on Shapes alone; where its file does not say, whether an encoder was."""
    if trained_on := sources[ADAPTER.name].trained_on:
        return SPLITS.keys() >= set(trained_on.split(", "))
    return any(source.note.startswith(SHAPES_NOTE) for source in sources.values())
