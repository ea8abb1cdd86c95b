"""Reads and writes the public weight layouts: strict, with advice when something does not fit."""

from openworldsam.checkpoint.knowledge import knowledge, photograph_warning
from openworldsam.checkpoint.layouts import Source, WeightFile, fingerprint, read_weights
from openworldsam.checkpoint.loading import (
    component_files,
    find_source,
    load_component,
    load_weights,
    provenance,
    score_rule,
)
from openworldsam.checkpoint.released import convert_released, convert_to_released
from openworldsam.checkpoint.writing import save_component, save_components, save_trained, store_thresholds

__all__ = [
    "Source",
    "WeightFile",
    "component_files",
    "convert_released",
    "convert_to_released",
    "find_source",
    "fingerprint",
    "knowledge",
    "load_component",
    "load_weights",
    "photograph_warning",
    "provenance",
    "read_weights",
    "save_component",
    "save_components",
    "save_trained",
    "score_rule",
    "store_thresholds",
]
