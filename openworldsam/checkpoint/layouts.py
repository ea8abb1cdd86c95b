"""The public weight layouts, read without a model.

A weight file holds one or more components, kept under their public names until they enter a model:

    sam2      Meta's names: image_encoder.*, sam_mask_decoder.*, sam_prompt_encoder.*, no_mem_embed, video modules
    beit3     Microsoft's names: beit3.*; other prompt encoders: as their `Component` declares
    adapter   our names: adapter.projector.*, adapter.tie_breakers, adapter.soft_prompt.*

| file                             | components           | recognised by                                     |
|----------------------------------|----------------------|---------------------------------------------------|
| released OpenWorldSAM checkpoint | sam2, beit3, adapter | visual_model.*, mm_extractor.*, positional_tokens |
| EVF-SAM2 (one file or shards)    | sam2, beit3          | visual_model.*, mm_extractor.*                    |
| SAM2 2.0 or 2.1                  | sam2                 | image_encoder.trunk.*                             |
| BEiT-3                           | beit3                | beit3.*                                           |
| another prompt encoder           | its own              | as it declares                                    |
| adapter file                     | adapter              | adapter.*                                         |
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from openworldsam.modeling.components import ADAPTER, SAM2, StateDict, rename, renamed
from openworldsam.modeling.prompt_encoders import PROMPT_ENCODER_REGISTRY

_SCALAR = np.float64(0).__reduce__()[0]  # its name in a file depends on the NumPy that wrote it
_NUMPY_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]

RELEASED_ADAPTER = (
    ("text_hidden_fcs.0.", "adapter.projector."),
    ("positional_tokens", "adapter.tie_breakers"),
    ("cross_attention_transformer.", "adapter.soft_prompt."),
)
"""(name in the released checkpoint, our name) by prefix."""
RELEASED_PREFIX = {"sam2": "visual_model.", "beit3": "mm_extractor."}
"""Prefix of a component's public names in the released checkpoint and in EVF-SAM2."""
RELEASED_TRAINING = {
    "preset": "released",
    "PROMPT_ENCODER.NAME": "BEiT3PromptEncoder",
    "ADAPTER.FUSION": "broadcast",
    "ADAPTER.INTERACTION": "image",
    "ADAPTER.KEY_POSITIONS": "False",
    "PROMPT_ENCODER.USE_IMAGE": "True",
}
"""Training settings of the released code, which its checkpoints do not record."""
DUPLICATES = "evf_sam2."
"""Prefix of the second copy of both encoders in the released checkpoint."""


@dataclass(frozen=True)
class Source:
    """Origin of one component's weights; recorded in every result and adapter file.

    file: name of the file.
    layout: from the table above.
    fingerprint: of names, shapes and sampled values.
    note: the file's own note about its origin.
    trained_on: training sets of an adapter in their order, joined by ", "; empty if unknown.
    """

    file: str
    layout: str
    fingerprint: str
    note: str = ""
    trained_on: str = ""


@dataclass(frozen=True)
class WeightFile:
    """Content of a weight file: its layout, components under public names, and metadata."""

    path: Path
    layout: str
    components: dict[str, StateDict]
    metadata: dict[str, str]

    def source(self, component: str) -> Source:
        """Return the origin of one component."""
        trained_on = self.metadata.get("trained_on", "") if component == ADAPTER.name else ""
        found = fingerprint(self.components[component])
        return Source(self.path.name, self.layout, found, self.metadata.get("note", ""), trained_on)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Identify weights by 16 hex digits: a hash of names, shapes and 16 to 31 values of every tensor."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].flatten()
        sample = values[:: max(1, len(values) // 16)]
        digest.update(f"{name}{tuple(state[name].shape)}".encode())
        digest.update(sample.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file of any layout of the table above.

    Args:
        path: a .pt, .pth, .bin or .safetensors file, the .index.json of a sharded one, or the folder of either.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its layout is unknown.
    """
    path = Path(path)
    state, metadata = _read_any(path)
    layout, components = _components(state)
    if layout == "released":
        tuned = ", refcocog_umd_train" if "refcocog" in path.name else ""  # the authors' files are told by their names
        published = {} if "preset" in metadata else {"trained_on": f"coco_2017_train_panoptic_openworldsam{tuned}"}
        metadata = {**RELEASED_TRAINING, **published, **metadata}
    for component in components.values():
        for name, tensor in component.items():
            if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
                raise ValueError(f"{path}: tensor {name} holds values that are not finite; fetch the file again")
    if not components:
        names = ", ".join(list(state)[:3])
        raise ValueError(
            f"{path} is of {layout} layout (its tensors: {names}, ...); weights/README.md lists readable files"
        )
    return WeightFile(path, layout, components, metadata)


def _read_any(path: Path) -> tuple[StateDict, dict[str, str]]:
    if path.is_dir():
        path = _file_in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weight file {path} not found; `python weights/download.py openworldsam_coco` fetches a full checkpoint, "
            "--list shows the others"
        )
    try:
        if path.name.endswith(".index.json"):
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()) - {path.name})
            parts = [path.parent / shard for shard in shards]
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        else:
            return _read_pickle(path)
    except OSError:
        raise
    except Exception as error:  # a damaged file makes the readers raise almost anything
        reason = _reason(path, error)
        raise ValueError(f"{path} is damaged or not a checkpoint ({reason}); fetch it again") from error
    return {name: tensor for part in parts for name, tensor in _read_any(part)[0].items()}, {}


def _reason(path: Path, error: Exception) -> str:
    """Describe the damage to a file in a line; torch's own text advises to switch its safety off."""
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"<":
            return "it is a web page"
    unsupported = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if unsupported:
        return f"it holds a {unsupported[1]} beside the tensors, which is not loaded for safety"
    if isinstance(error, pickle.UnpicklingError):
        return "it cannot be unpickled"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _file_in_folder(folder: Path) -> Path:
    for pattern in ("*.safetensors.index.json", "*.bin.index.json", "*.safetensors", "*.bin", "*.pth", "*.pt"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(f.name for f in found)
            raise ValueError(f"{folder} holds several weight files ({names}); name one of them")
        if found:
            return found[0]
    raise FileNotFoundError(f"no weight file in the folder {folder}")


def _read_pickle(path: Path) -> tuple[StateDict, dict[str, str]]:
    # checkpoints may hold training arguments and NumPy numbers beside the tensors
    with torch.serialization.safe_globals([argparse.Namespace, *_NUMPY_NUMBERS]):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}")
    metadata = content.get("openworldsam", {})
    for key in ("model", "module", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return state, dict(metadata) if isinstance(metadata, Mapping) else {}


def _components(state: StateDict) -> tuple[str, dict[str, StateDict]]:
    """Name the layout and sort the tensors into components under public names."""

    def has(prefix: str | tuple[str, ...]) -> bool:
        return any(name.startswith(prefix) for name in state)

    if has("image_encoder.backbone."):
        return "the model's internal", {}
    if has(ADAPTER.recognised_by):
        return ADAPTER.layout, {ADAPTER.name: state}
    if has(SAM2.recognised_by):
        version = "2.1" if "no_obj_embed_spatial" in state else "2.0"
        return f"{SAM2.layout} {version}", {SAM2.name: state}
    declared = {c.name: c for _, encoder in PROMPT_ENCODER_REGISTRY if (c := encoder.component)}
    if found := [c for c in declared.values() if has(c.recognised_by)]:
        # files of two encoders may look alike; a model takes the component that its encoder declares
        layout = " or ".join(c.layout for c in found)
        return layout, {c.name: {n: t for n, t in state.items() if not re.match(c.not_read, n)} for c in found}
    encoders = {component: rename(state, ((prefix, ""),)) for component, prefix in RELEASED_PREFIX.items()}
    if not all(encoders.values()):
        return "unknown", {}
    if not has((DUPLICATES, "positional_tokens")):
        return "EVF-SAM2", encoders  # its projector is not OpenWorldSAM's
    others = (DUPLICATES, *RELEASED_PREFIX.values())
    # a tensor that the adapter does not know keeps its name, so that loading can report it
    adapter = {renamed(n, RELEASED_ADAPTER) or n: t for n, t in state.items() if not n.startswith(others)}
    return "released", {**encoders, "adapter": adapter}
