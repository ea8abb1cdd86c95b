"""How often the host waits for the device. Meanwhile it gives the device nothing to do, so each wait slows both down.

A CPU waits for nothing. There the count is that of a device holding given tensors and all that is computed from them.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401 (adds its operations to torch.ops)
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
PACKAGE = Path(__file__).parents[1]
READS_VALUES = {
    aten._local_scalar_dense,  # item(), bool(), float(), a 0-dimensional tensor as index
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
    aten._unique2,
    torch.ops.torchvision.nms,
}
"""Operations whose result, or its size, the host must read from the device."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operation's operands or results, and in their lists."""
    flat = (item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,)))
    return [item for item in flat if isinstance(item, Tensor)]


class WaitCounter(TorchDispatchMode):
    """Counts the waits of the code in its context.

    Args:
        on_device: CPU tensors that count as being on the device, such as a model's state.

    Attributes:
        waits: "file:line: operation: source" of each operation that reads values and of each copy to the host.
        uploads: likewise of each copy to the device without non_blocking, for which CUDA waits as well.
    """

    def __init__(self, on_device: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.uploads: list[str] = []
        self._storages: set[StorageWeakRef] = set()
        self._copies = ExitStack()
        self.move(on_device)

    def __enter__(self) -> WaitCounter:
        if self._storages:
            self._copies.enter_context(_CopiesOnCPU(self))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._copies.close()

    def move(self, tensors: Iterable[Tensor]) -> None:
        """Count CPU tensors as being on the device from now on."""
        self._storages.update(StorageWeakRef(t.untyped_storage()) for t in tensors if t.device.type == "cpu")

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        if tensor.device.type != "cpu":
            return True
        return bool(self._storages) and StorageWeakRef(tensor.untyped_storage()) in self._storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands, results = tensors([*args, *kwargs.values()]), tensors([result])
        if any(map(self.holds, operands)):
            if self._storages:
                self.move(results)
            packet, counts = func.overloadpacket, False
            if packet in INDEXING:  # by a mask: its true elements must be counted
                counts = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
            elif packet is aten.repeat_interleave:
                counts = kwargs.get("output_size") is None
            if packet in READS_VALUES or counts or not all(map(self.holds, results)):
                self.waits.append(_site(func))
        elif operands and any(map(self.holds, results)):
            non_blocking = args[2] if func is aten.copy_.default and len(args) > 2 else kwargs.get("non_blocking")
            if not non_blocking:
                self.uploads.append(_site(func))
        return result


class _CopiesOnCPU(TorchFunctionMode):
    """Finds copies to the host and tensors made for the device where both are the CPU, and no operation shows it."""

    def __init__(self, counter: WaitCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.cpu, Tensor.numpy, Tensor.tolist) and self.counter.holds(args[0]):
            self.counter.waits.append(_site(func.__name__))
            if func is Tensor.cpu:
                with _disable_current_modes():
                    return args[0].clone()
        result = func(*args, **kwargs or {})
        if isinstance((kwargs or {}).get("device"), torch.device):
            self.counter.move([result])
        return result


def _site(operation: Any) -> str:
    """The innermost line of the package that is running."""
    frames = [f for f in traceback.extract_stack() if PACKAGE in Path(f.filename).parents and f.filename != __file__]
    if not frames:
        return f"elsewhere: {operation}"
    return f"{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno}: {operation}: {frames[-1].line}"
