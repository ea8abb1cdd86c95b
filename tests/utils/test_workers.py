"""DataLoaders as the package sets them up."""

import signal

import torch

from openworldsam.utils.workers import image_loader


class Signals:
    """Reaction of a worker to Ctrl-C, and the number asked for."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index, signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_batches_are_lists_workers_leave_ctrl_c_and_the_random_generator_is_left_alone():
    before = torch.get_rng_state()
    assert list(image_loader(Signals(), num_workers=1, batch_size=2)) == [[(0, True), (1, True)], [(2, True)]]
    assert list(image_loader(Signals(), num_workers=0, batch_size=None, collate_fn=lambda item: item[0])) == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), before)
