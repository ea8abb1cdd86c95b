"""Writes weight files: the adapter's, and those of single components."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from safetensors.torch import save_file

import openworldsam
from openworldsam.checkpoint.layouts import THRESHOLDS, Source, WeightFile
from openworldsam.checkpoint.loading import TRAINED_WITH, training_record
from openworldsam.modeling.components import ADAPTER, SCORE_HEAD, Component, StateDict, rename
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.utils.files import save_safetensors


def save_trained(model: OpenWorldSAM, folder: Path, cfg: CfgNode, sources: Mapping[str, Source]) -> None:
    """Write the trained weights, with a record of their training.

    adapter.safetensors has the adapter's tensors (59 in the full model, 18 MB) and those of the score head, if there is
    one. A head that was trained alone goes to score_head.safetensors.

    Args:
        sources: of the model's components, from `load_weights`.
    """
    name = ADAPTER.name if model.train_adapter else SCORE_HEAD.name
    before = sources[name].trained_on.split(", ") if name in sources else []
    trained_on = ", ".join(dict.fromkeys([*filter(None, before), *cfg.DATASETS.TRAIN]))
    metadata = {**training_record(cfg), "trained_on": trained_on}
    parts = ([ADAPTER] if model.train_adapter else []) + ([SCORE_HEAD] if model.score_head else [])
    state: StateDict = {}
    for component in parts:
        state |= public_state(model, component)
    others = {component: source for component, source in sources.items() if component not in [c.name for c in parts]}
    _save_trained_state(state, folder / f"{name}.safetensors", metadata, others)


def store_thresholds(path: str | Path, file: WeightFile, thresholds: Mapping[str, float]) -> None:
    """Write a file with a score head again, with thresholds by rule (openworldsam calibrate)."""
    state = {name: tensor for component in file.components.values() for name, tensor in component.items()}
    _save_tensors(state, Path(path), {**file.metadata, THRESHOLDS: json.dumps(dict(thresholds))})


def save_component(
    model: OpenWorldSAM,
    name: str,
    path: str | Path,
    note: str,
    dtype: torch.dtype = torch.float32,
    video: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write one of the encoders under its public names, for MODEL.SAM2.WEIGHTS or MODEL.PROMPT_ENCODER.WEIGHTS.

    Args:
        name: of the component: "sam2" or the prompt encoder's.
        note: on the origin of the weights; recorded in every result made with them.
        dtype: number format of the file.
        video: tensors of SAM2's video modules, under their public names.
    """
    state = {**public_state(model, model.components[name]), **(video or {})}
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    _save_tensors(state, Path(path), {"openworldsam": openworldsam.__version__, "note": note})


def save_components(files: Mapping[str, WeightFile], folder: Path) -> dict[str, Path]:
    """Write each component of a model to its own file, NAME.safetensors, as it was read; returns the paths by name.

    Args:
        files: the file that each component was read from, by the component's name; including the adapter.
        folder: for the new files; encoders keep their public names, video modules included.
    """
    written = {name: folder / f"{name}.safetensors" for name in files}
    encoders = [name for name in files if name not in (ADAPTER.name, SCORE_HEAD.name)]
    # a component's own file no longer shows that it was fine-tuned
    notes = {
        name: {"note": file.metadata.get("note", f"from {file.path.name} ({file.layout})")}
        for name, file in files.items()
    }
    for name in encoders:
        _save_tensors(files[name].components[name], written[name], notes[name])
    for name, others in ((ADAPTER.name, encoders), (SCORE_HEAD.name, [*encoders, ADAPTER.name])):
        if name in files:
            sources = {other: files[name].recorded(other) or files[other].source(other) for other in others}
            unknown = "trained_on" not in files[name].metadata
            metadata = (notes[name] if unknown else {}) | carried_over(files[name])
            _save_trained_state(files[name].components[name], written[name], metadata, sources)
    return written


def public_state(model: OpenWorldSAM, component: Component) -> StateDict:
    """The tensors of a model's component, under their public names."""
    modules = tuple(f"{module}." for module in component.modules)
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(modules)}
    return rename(state, [(inside, public) for public, inside in component.prefixes])


def carried_over(file: WeightFile) -> dict[str, str]:
    """Metadata of an adapter file that survive a change of layout."""
    kept = ("note", "preset", "trained_on", THRESHOLDS, *TRAINED_WITH)
    return {key: file.metadata[key] for key in kept if key in file.metadata}


def _save_trained_state(
    state: StateDict, path: Path, metadata: Mapping[str, str], sources: Mapping[str, Source]
) -> None:
    """Write trained weights with the sources of those that they were trained with."""
    recorded = {name: json.dumps(asdict(source)) for name, source in sources.items()}
    _save_tensors(state, path, {"openworldsam": openworldsam.__version__, **metadata, **recorded})


def _save_tensors(state: StateDict, path: Path, metadata: Mapping[str, str]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def write(partial: Path) -> None:
        save_file(tensors, partial, metadata={"format": "pt", **metadata})
        _sort_metadata(partial)

    save_safetensors(path, write)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a file in order, so that the same weights give the same bytes; safetensors keeps none."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
