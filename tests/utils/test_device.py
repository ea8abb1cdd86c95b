import resource
import sys

import pytest
import torch

from openworldsam.config import load_config
from openworldsam.utils.device import checked_device, keep_freed_memory, usable_device


def faults_before_and_after():
    x = torch.ones(8, 1024, 1024)

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            x + x
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    before = faults()
    keep_freed_memory()
    faults()
    return before, faults()


def test_an_unknown_device_is_an_error_in_a_line():
    with pytest.raises(ValueError, match=r"device 'gpu7' cannot be used: .*; cpu always can"):
        checked_device("gpu7")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_on_the_cpu_freed_memory_is_used_again(processes):
    ((before, after),) = processes.values(faults_before_and_after)
    assert before > 100 and after < 0.1 * before


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, True, "cuda")]
)
def test_the_default_is_the_best_device_of_the_machine(cuda, mps, best, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best == load_config("released").MODEL.DEVICE


def test_only_cuda_that_was_asked_for_is_missed(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert usable_device(load_config("released").MODEL.DEVICE) == "cpu" and not caplog.messages
    assert usable_device(load_config("released", ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE) == "cpu"
    assert caplog.messages == ["no cuda on this machine, running on cpu"]
