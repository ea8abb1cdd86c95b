"""Weight files out: adapter files, and conversion from and to the released layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from safetensors.torch import save_file
from torch import nn

import openworldsam
from openworldsam.checkpoint.layouts import (
    DUPLICATES,
    RELEASED_ADAPTER,
    RELEASED_PREFIX,
    Source,
    StateDict,
    WeightFile,
    read_weights,
    rename,
    renamed,
)
from openworldsam.checkpoint.loading import MODULES, PREFIXES, TRAINED_WITH, training_record
from openworldsam.utils.files import save_atomically


def save_adapter(model: nn.Module, path: str | Path, cfg: CfgNode, sources: Mapping[str, Source]) -> None:
    """Write the trained tensors alone (59 for the full model, 18 MB) with what they were trained with.

    Args:
        model: an `OpenWorldSAM`.
        path: the .safetensors file.
        cfg: its config.
        sources: of the encoders, from `load_weights`.
    """
    state = {f"adapter.{name}": tensor for name, tensor in model.get_submodule("adapter").state_dict().items()}
    _save_adapter_state(state, Path(path), training_record(cfg), sources)


def save_component(
    model: nn.Module,
    component: str,
    path: str | Path,
    note: str,
    dtype: torch.dtype = torch.float32,
    video: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write one of the encoders under its public names, for MODEL.SAM2.WEIGHTS or MODEL.PROMPT_ENCODER.WEIGHTS.

    Args:
        model: an `OpenWorldSAM`.
        component: "sam2" or "beit3".
        path: the .safetensors file.
        note: where the weights come from; stands in every result made with them.
        dtype: of the file.
        video: tensors of SAM2's video modules, under their public names.
    """
    own = {**_public_state(model, component), **(video or {})}
    state = {name: tensor.to(dtype) for name, tensor in own.items()}
    _save_tensors(state, Path(path), {"openworldsam": openworldsam.__version__, "note": note})


def convert_released(path: str | Path, folder: str | Path) -> dict[str, Path]:
    """Split a full checkpoint of the released layout into adapter.safetensors, sam2.safetensors, beit3.safetensors.

    Args:
        path: the checkpoint, `model_final.pth`.
        folder: where the three files go; the encoders' keep their public names, video modules included.

    Returns:
        the path written for each component.

    Raises:
        ValueError: the file is not of the released layout.
    """
    file = read_weights(path)
    if file.layout != "released":
        raise ValueError(f"{path} is of the layout {file.layout}; only a full OpenWorldSAM checkpoint is converted")
    return save_components(dict.fromkeys(file.components, file), Path(folder))


def save_components(files: Mapping[str, WeightFile], folder: Path) -> dict[str, Path]:
    """Write a model's components, as they were read, to adapter.safetensors, sam2.safetensors, beit3.safetensors.

    Args:
        files: the file that each of the three components is in.
        folder: of the three files; the encoders' keep their public names, video modules included.

    Returns:
        the path written for each component.

    Raises:
        OSError: one cannot be written.
    """
    written = {component: folder / f"{component}.safetensors" for component in files}
    for component in RELEASED_PREFIX:
        file = files[component]
        # in a file of its own, a fine-tuned encoder looks like the public one
        note = {"note": file.metadata.get("note", f"from {file.path.name} ({file.layout})")}
        _save_tensors(file.components[component], written[component], note)
    trained = files["adapter"]
    recorded = {c: json.loads(trained.metadata[c]) for c in RELEASED_PREFIX if c in trained.metadata}
    encoders = {c: Source(**recorded[c]) if c in recorded else files[c].source(c) for c in RELEASED_PREFIX}
    _save_adapter_state(trained.components["adapter"], written["adapter"], _carried_over(trained), encoders)
    return written


def convert_to_released(adapter: str | Path, sam2: str | Path, beit3: str | Path, path: str | Path) -> None:
    """Join an adapter file and both encoders into a full checkpoint of the released layout.

    All 1,930 tensors that count, and the released code's duplicates of the encoders, which share their memory.
    Its four `evf_sam2.text_hidden_fcs` tensors, which nothing reads, are not there.

    Args:
        adapter, sam2, beit3: weight files that hold these components.
        path: the checkpoint to write.

    Raises:
        ValueError: one of the files does not hold its component.
    """
    state: StateDict = {}
    trained = _component(adapter, "adapter")
    state.update({released_name(name): tensor for name, tensor in trained.components["adapter"].items()})
    for component, file in (("sam2", _component(sam2, "sam2")), ("beit3", _component(beit3, "beit3"))):
        for name, tensor in file.components[component].items():
            public = RELEASED_PREFIX[component] + name
            state[public] = state[DUPLICATES + public] = tensor
    content = {"model": state, "openworldsam": _carried_over(trained)}
    save_atomically(Path(path), lambda partial: torch.save(content, partial))


def released_state(model: nn.Module) -> StateDict:
    """All tensors of an `OpenWorldSAM` under the names of the released checkpoint, without the duplicates."""
    state: StateDict = {}
    for component in PREFIXES:
        before = RELEASED_PREFIX.get(component, "")
        state.update({before + name: tensor for name, tensor in _public_state(model, component).items()})
    return {released_name(name): tensor for name, tensor in state.items()}


def _public_state(model: nn.Module, component: str) -> StateDict:
    """The tensors of a component under their public names."""
    modules = tuple(f"{module}." for module in MODULES[component])
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(modules)}
    return rename(own, [(ours, public) for public, ours in PREFIXES[component]])


def released_name(name: str) -> str:
    """The released checkpoint's name of one of the adapter's tensors; other names stay as they are."""
    return renamed(name, [(ours, released) for released, ours in RELEASED_ADAPTER]) or name


def _component(path: str | Path, component: str) -> WeightFile:
    file = read_weights(path)
    if component not in file.components:
        raise ValueError(f"{path} ({file.layout}) holds no {component} weights")
    return file


def _carried_over(file: WeightFile) -> dict[str, str]:
    """The metadata of an adapter that another layout must not lose."""
    return {key: file.metadata[key] for key in ("note", "preset", *TRAINED_WITH) if key in file.metadata}


def _save_adapter_state(
    state: StateDict, path: Path, metadata: Mapping[str, str], encoders: Mapping[str, Source]
) -> None:
    recorded = {component: json.dumps(asdict(encoders[component])) for component in RELEASED_PREFIX}
    _save_tensors(state, path, {"openworldsam": openworldsam.__version__, **metadata, **recorded})


def _save_tensors(state: StateDict, path: Path, metadata: Mapping[str, str]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_atomically(path, lambda partial: save_file(tensors, partial, metadata={"format": "pt", **metadata}))
