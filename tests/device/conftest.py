"""The pretended device, and the same model there and on the CPU."""

import pretend
import pytest
import torch

from openworldsam import OpenWorldSAMPredictor

DEVICE = pretend.register()
"""Registered before any test runs: the first backward pass of a process makes the threads of all its devices."""


@pytest.fixture(autouse=True)
def same_operations(monkeypatch):
    """torch.tensor knows the device, and the CPU takes its steps, without attention kernels and cached casts."""
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, pretend.creation(getattr(torch, name)))
    attention = (torch.backends.cuda.enable_flash_sdp, torch.backends.mha.set_fastpath_enabled)
    switches = (*attention, torch.set_autocast_cache_enabled)
    for switch in switches:
        switch(False)
    yield
    for switch in switches:
        switch(True)


@pytest.fixture
def predictors(tiny_cfg):
    """The tiny model on the CPU and on the device."""

    def make(*opts):
        return [OpenWorldSAMPredictor(tiny_cfg, device=device, opts=opts) for device in ("cpu", "gpu")]

    return make
