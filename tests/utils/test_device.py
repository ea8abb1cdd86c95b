import resource
import sys

import pytest
import torch

from openworldsam.utils.device import checked_device, keep_freed_memory


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
