"""Content of a weight file, and how its components differ from those of the public files."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from openworldsam.checkpoint import WeightFile, fingerprint, read_weights
from openworldsam.checkpoint.layouts import DUPLICATES, RELEASED_PREFIX
from openworldsam.checkpoint.reading import read_tensors
from openworldsam.config_files import find_weights
from openworldsam.download import REGISTRY, sha256
from openworldsam.modeling.components import StateDict

USUAL = 1000.0
"""Largest absolute value that trained weights have."""


def inspect_weights(path: Path) -> dict[str, Any]:
    """Describe a weight file, as JSON; its tensors stay in the memory-mapped file and do not outlive the call.

    Returns:
        file, bytes and sha256 (None for a folder), layout, note; components: `describe` by name; copies:
        `_second_copies`; compared: `compare` by component and name of a public file that is at hand.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its layout is unknown.
    """
    file = read_weights(path)
    compared: dict[str, dict[str, Any]] = {name: {} for name in file.components}
    for public in public_files(path):
        other = read_weights(public)
        for name in file.components.keys() & other.components.keys():
            compared[name][public.name] = compare(file.components[name], other.components[name])
    whole = path.is_file()
    return {
        "file": path.name,
        "bytes": path.stat().st_size if whole else None,
        "sha256": sha256(path) if whole else None,
        "layout": file.layout,
        "note": file.metadata.get("note", ""),
        "components": {name: describe(state) for name, state in file.components.items()},
        "copies": _second_copies(file),
        "compared": compared,
    }


def public_files(path: Path) -> list[Path]:
    """List the public weight files beside a file, in ./weights and in the weights folder, without the file itself."""
    found = []
    for weight in REGISTRY.values():
        beside, elsewhere = path.parent / weight.filename, Path(find_weights(f"weights/{weight.filename}"))
        public = beside if beside.exists() else elsewhere
        if public.suffix != ".spm" and public.exists() and not os.path.samefile(public, path):
            found.append(public)
    return found


def describe(state: StateDict) -> dict[str, Any]:
    """Numbers of tensors, parameters and tensors by number format; fingerprint; smallest and largest value and root
    mean square; names of constant tensors, which training has not touched, and of those beyond `USUAL`."""
    numbers = {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel()}
    bounds = {name: [bound.item() for bound in tensor.aminmax()] for name, tensor in numbers.items()}
    parameters = sum(tensor.numel() for tensor in numbers.values())
    squares = sum(tensor.float().square().sum(dtype=torch.float64).item() for tensor in numbers.values())
    return {
        "tensors": len(state),
        "parameters": parameters,
        "formats": dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())),
        "fingerprint": fingerprint(state),
        "smallest": min((low for low, _ in bounds.values()), default=0.0),
        "largest": max((high for _, high in bounds.values()), default=0.0),
        "rms": math.sqrt(squares / max(1, parameters)),
        "constant": [name for name, (low, high) in bounds.items() if low == high and numbers[name].numel() > 1],
        "unusual": [name for name, (low, high) in bounds.items() if max(-low, high) > USUAL],
    }


def compare(ours: StateDict, theirs: StateDict) -> dict[str, Any]:
    """Compare the tensors of a component that both files have in the same shape.

    Returns:
        tensors: of ours; comparable: of these; equal: of these, whatever the number format; difference: root of the
        squared differences' sum, relative to that of our values, None without comparable tensors.
    """
    names = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    equal, squares, total = 0, 0.0, 0.0
    for name in names:
        a, b = ours[name].float(), theirs[name].float()
        total += a.square().sum(dtype=torch.float64).item()
        if torch.equal(a, b):
            equal += 1
        else:
            squares += (a - b).square().sum(dtype=torch.float64).item()
    difference = math.sqrt(squares / total) if total else None
    return {"tensors": len(ours), "comparable": len(names), "equal": equal, "difference": difference}


def _second_copies(file: WeightFile) -> dict[str, Any]:
    """Count the tensors of a file, the second copies of encoders that a released checkpoint has, and the tensors that
    nothing reads; name the copies that differ from the first."""
    state = read_tensors(file.path)[0]
    others = {name: "".join(name.split(DUPLICATES, 1)) for name in state if DUPLICATES in name}
    encoders = tuple(RELEASED_PREFIX.values())
    copies = {n: first for n, first in others.items() if n.split(DUPLICATES)[1].startswith(encoders) and first in state}
    differing = [n for n, first in copies.items() if not torch.equal(state[n].float(), state[first].float())]
    read = sum(len(component) for component in file.components.values())
    not_read = len(state) - read - len(copies)
    return {"tensors": len(state), "copies": len(copies), "differing": differing, "not_read": not_read}
