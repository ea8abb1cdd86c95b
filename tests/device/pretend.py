"""A device that is none: tensors of "gpu:0" whose values the CPU holds, and where it runs every operation.

As on CUDA, an operation fails if its operands lie on different devices, except for copies and numbers of no dimension.
Indexing by a tensor of the CPU fails too; CUDA would copy it, and wait.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from openworldsam.speed.waits import tensors

NAME = "gpu"
COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
AUTOCAST = "linear matmul mm bmm addmm baddbmm conv2d conv_transpose2d.input scaled_dot_product_attention"
"""The operations that the CPU's autocast computes in half precision, as far as the model has them."""


class PretendTensor(Tensor):
    """A tensor of the pretended device; `held` are its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout, dtype=held.dtype, device=f"{NAME}:0")
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, *args, **kwargs or {})

    # what PyTorch does in C++ without asking the subclass
    def __getitem__(self, index):
        return super().__getitem__(torch.tensor(index, device=self.device) if isinstance(index, list) else index)

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"PretendTensor({self.held})"


def run(func, *args, **kwargs):
    """An operation that has an operand or its result on the device."""
    operands = tensors([*args, *kwargs.values()])
    apart = [x for x in operands if x.ndim and not isinstance(x, PretendTensor)]
    if apart and func not in COPIES and any(isinstance(x, PretendTensor) for x in operands):
        raise RuntimeError(f"{func} meets two devices: {[(x.device.type, tuple(x.shape)) for x in operands]}")
    target = kwargs.get("device")
    if target is not None:
        kwargs["device"] = "cpu"
    result = func(*map(_held, args), **{name: _held(value) for name, value in kwargs.items()})
    if target is not None and torch.device(target).type != NAME:
        return result
    known = {id(_held(x)): x for x in operands}  # what works in place returns its operand
    return _each(result, lambda x: known[id(x)] if id(x) in known else PretendTensor(x))


def _held(value):
    return _each(value, lambda x: getattr(x, "held", x))


def _each(value, call):
    """Call with a tensor, or those of a list."""
    if isinstance(value, (list, tuple)):
        return type(value)(_each(item, call) for item in value)
    return call(value) if isinstance(value, Tensor) else value


def _autocast(operation):
    """The operation with its operands in the number format of torch.autocast("gpu")."""
    inside = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def call(*args, **kwargs):
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(inside):
            args = [_each(x, lambda t: t.to(dtype) if t.is_floating_point() else t) for x in args]
            return operation(*args, **kwargs)

    return call


def register() -> list[torch.library.Library]:
    """Make the device known to PyTorch; it is as long as the libraries live."""

    class Backend(_DummyBackendModule):
        def get_amp_supported_dtype(self):
            return [torch.bfloat16, torch.float16]

    _setup_privateuseone_for_python_backend(NAME, Backend())
    every, autocast = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    every.fallback(run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in AUTOCAST.split():
        packet, _, overload = name.partition(".")
        autocast.impl(name, _autocast(getattr(getattr(torch.ops.aten, packet), overload or "default")))
    return [every, autocast]


def creation(make):
    """torch.tensor or torch.as_tensor, which in C++ copy to a device past the subclass."""

    def call(data, *args, device=None, **kwargs):
        made = make(data, *args, **kwargs)
        return made if device is None else made.to(device)

    return call
