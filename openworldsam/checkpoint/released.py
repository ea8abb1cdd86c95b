"""Conversion from and to the layout of the released checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from openworldsam.checkpoint.layouts import DUPLICATES, RELEASED_ADAPTER, RELEASED_PREFIX, read_weights
from openworldsam.checkpoint.writing import carried_over, public_state, save_components
from openworldsam.modeling.components import ADAPTER, SCORE_HEAD, StateDict, renamed
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.utils.files import save_atomically

logger = logging.getLogger(__name__)


def convert_released(path: str | Path, folder: str | Path) -> dict[str, Path]:
    """Split a full checkpoint of the released layout into adapter.safetensors, sam2.safetensors, beit3.safetensors.

    Encoders keep their public names, video modules included. Returns the path written for each component.

    Raises:
        ValueError: the file is not of the released layout.
    """
    file = read_weights(path)
    if file.layout != "released":
        raise ValueError(f"{path} is of the layout {file.layout}; only a full OpenWorldSAM checkpoint is converted")
    return save_components(dict.fromkeys(file.components, file), Path(folder))


def convert_to_released(adapter: str | Path, sam2: str | Path, beit3: str | Path, path: str | Path) -> None:
    """Join an adapter file and both encoders into a full checkpoint of the released layout.

    It has all 1,930 tensors that are read, and the released code's duplicates of the encoders in shared memory, but not
    the four `evf_sam2.text_hidden_fcs` tensors, which nothing reads, nor a score head.

    Raises:
        ValueError: one of the files does not hold its component, or has more than the layout.
    """
    files = {"adapter": read_weights(adapter), "sam2": read_weights(sam2), "beit3": read_weights(beit3)}
    for component, file in files.items():
        if component not in file.components:
            raise ValueError(f"{file.path} ({file.layout}) holds no {component} weights")
    trained = files.pop("adapter")
    if any(name.startswith("adapter.image_injection.") for name in trained.components["adapter"]):
        raise ValueError(f"{trained.path}: the released layout has no place for MODEL.ADAPTER.IMAGE_LAYERS")
    if SCORE_HEAD.name in trained.components:
        logger.warning("%s has no place for the score head; %s %s adds it", path, SCORE_HEAD.key, trained.path)
    state = {released_name(name): tensor for name, tensor in trained.components["adapter"].items()}
    for component, file in files.items():
        for name, tensor in file.components[component].items():
            public = RELEASED_PREFIX[component] + name
            state[public] = state[DUPLICATES + public] = tensor
    content = {"model": state, "openworldsam": carried_over(trained)}
    save_atomically(Path(path), lambda partial: torch.save(content, partial))


def released_state(model: OpenWorldSAM) -> StateDict:
    """All tensors of a model under the names of the released checkpoint, without the duplicates.

    Raises:
        ValueError: the model has another prompt encoder than the released checkpoint.
    """
    state: StateDict = {}
    for name, component in model.components.items():
        if component != ADAPTER and name not in RELEASED_PREFIX:
            raise ValueError(f"the released layout has no place for {name}: it holds {', '.join(RELEASED_PREFIX)}")
        prefix = RELEASED_PREFIX.get(name, "")
        state.update({prefix + public: tensor for public, tensor in public_state(model, component).items()})
    return {released_name(name): tensor for name, tensor in state.items()}


def released_name(name: str) -> str:
    """The name of an adapter tensor in the released checkpoint; other names stay unchanged."""
    return renamed(name, [(ours, released) for released, ours in RELEASED_ADAPTER]) or name
