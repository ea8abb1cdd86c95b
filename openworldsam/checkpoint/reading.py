"""Tensors of weight files, whatever their layout: read without running code, in the memory that the file has."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from openworldsam.config_files import looked_for
from openworldsam.download import names_of
from openworldsam.modeling.components import StateDict
from openworldsam.utils.files import regular_file
from openworldsam.utils.text import brief, shortened

_SCALAR = np.float64(0).__reduce__()[0]  # its name in a file depends on the NumPy that wrote it
_NUMPY_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]
LARGEST = 1e6
"""Largest absolute value of a weight; trained ones stay below 1,000, and much larger ones overflow."""

_INDEX = ".index.json"
_HINT = "`openworldsam download openworldsam_coco` fetches a full checkpoint, --list shows the others"


def read_tensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Read all tensors of a weight file, its shards or the only weight file of a folder, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no weight file.
    """
    if path.is_dir():
        path = _file_in_folder(path)
    if not path.name.endswith(_INDEX):
        return _read_file(path)
    shards = [path.parent / name for name in _shard_names(path)]
    return {name: tensor for shard in shards for name, tensor in _read_file(shard)[0].items()}, {}


def _file_in_folder(folder: Path) -> Path:
    for pattern in (f"*.safetensors{_INDEX}", f"*.bin{_INDEX}", "*.safetensors", "*.bin", "*.pth", "*.pt"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(f.name for f in found)
            raise ValueError(f"{folder} holds several weight files ({names}); name one of them")
        if found:
            return found[0]
    raise FileNotFoundError(f"no weight file in the folder {folder}; {_fetching(folder)}")


def _fetching(path: Path) -> str:
    names = " ".join(names_of([path]))
    return f"`openworldsam download {names}` fetches it" if names else _HINT


def _shard_names(index: Path) -> list[str]:
    """Names of the shards of an index, which lie in its folder."""
    text = regular_file(index, _HINT).read_bytes()
    try:
        names = sorted(set(json.loads(text)["weight_map"].values()))
        for name in names:
            if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
                raise ValueError(
                    f"a shard is a .safetensors or .bin file in the folder of its index, not {brief(name)}"
                )
        if not names:
            raise ValueError("it names no shards")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is damaged or not a checkpoint's index ({shortened(str(error))})") from None
    return names


def _read_file(path: Path) -> tuple[StateDict, dict[str, str]]:
    if not path.exists():
        raise FileNotFoundError(f"weight file {path} not found{looked_for(path)}; {_fetching(path)}")
    with regular_file(path).open("rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar":
        kinds = "packed files, or the format of the first PyTorch releases"
        advice = "unpack it, or save its tensors again with a current PyTorch"
        raise ValueError(f"{path} is a tar archive ({kinds}): {advice}")
    try:
        if path.suffix != ".safetensors":
            return _from_pickle(_load_pickle(path))
        with safe_open(path, framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}  # noqa: SIM118
    except Exception as error:  # a damaged file makes the readers raise almost anything
        raise ValueError(f"{path} is damaged or not a checkpoint ({_reason(start, error)}); fetch it again") from error


def _load_pickle(path: Path) -> Any:
    """Load tensors, plain values and NumPy numbers that `torch.save` wrote; a damaged file raises almost anything."""
    if archived := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its archive is compressed")  # and may be a thousand times as large
            pickles = [archive.read(entry) for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
    else:
        with path.open("rb") as file:
            pickles = [file.read(2**20)]
    if any(b"bytearray" in content for content in pickles):  # of any length, by its number
        raise ValueError("it makes bytes")
    # checkpoints may hold training arguments and NumPy numbers beside the tensors
    with torch.serialization.safe_globals([argparse.Namespace, *_NUMPY_NUMBERS]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archived)


def _from_pickle(content: Any) -> tuple[StateDict, dict[str, str]]:
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}")
    metadata = content.get("openworldsam", {})
    for key in ("model", "module", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    texts = metadata.items() if isinstance(metadata, Mapping) else ()
    return state, {key: text for key, text in texts if isinstance(key, str) and isinstance(text, str)}


def _reason(start: bytes, error: Exception) -> str:
    """Describe the damage to a file, given its first bytes, in a line; torch advises to switch its safety off."""
    if start.lstrip()[:1] == b"<":
        return "it is a web page"
    if start.startswith(b"PK") and (isinstance(error, OSError) or "PytorchStreamReader" in str(error)):
        return "its zip archive is cut short"
    unsupported = re.search(r"(?i)unsupported (?:global: )?global (\S+)", str(error))
    if unsupported:
        return f"it holds a {shortened(unsupported[1], 100)} beside the tensors, which is not loaded for safety"
    if isinstance(error, pickle.UnpicklingError):
        return "it cannot be unpickled"
    return shortened(str(error).splitlines()[0], 200) if str(error) else type(error).__name__


def check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Raise ValueError for a tensor that is no weight: not stored whole, in an odd number format, or without bounds."""
    if problem := _problem(tensor):
        raise ValueError(f"{path}: tensor {shortened(name, 200)} {problem}; fetch the file again")


def _problem(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        return "is sparse, quantized, nested or without values"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"is expanded: {tuple(tensor.shape)} of {tensor.untyped_storage().nbytes():,} bytes"
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return f"is of the number format {str(tensor.dtype).removeprefix('torch.')}"
    low, high = (bound.item() for bound in tensor.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds values that are not finite"
    return f"holds values from {low:g} to {high:g}, which no weight has" if max(-low, high) > LARGEST else ""
