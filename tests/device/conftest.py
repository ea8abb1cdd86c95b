"""The pretended device, and the same model there and on the CPU."""

import pretend
import pytest
import torch

from openworldsam import OpenWorldSAMPredictor


@pytest.fixture(scope="session")
def registered():
    return pretend.register()


@pytest.fixture(autouse=True)
def same_operations(registered, monkeypatch):
    """The device exists, and the CPU takes the same steps as it: no attention kernels or cached casts of its own."""
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
