"""What counts as a wait, on a device and for tensors of the CPU that stand for a device's."""

import pytest
import torch
from torchvision.ops import nms

from openworldsam.speed.waits import WaitCounter

WAITS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "copy": lambda x: x.cpu().numpy(),
    "mask": lambda x: x[x > 1],
    "assignment by mask": lambda x: x.clone().__setitem__(x > 1, x[:2]),
    "nonzero": lambda x: torch.nonzero(x),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 1),
    "repetitions": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=x.device)),
    "index of no dimension": lambda x: x[x.argmax()],
    "nms": lambda x: nms(x[:, None].expand(3, 4), x, 0.5),
    "equal": lambda x: torch.equal(x, x),
}
NO_WAITS = {
    "arithmetic": lambda x: (x * 2).sum() > 1,
    "where": lambda x: torch.where(x > 1, x, 0),
    "masked_fill": lambda x: x.masked_fill(x > 1, 0),
    "indices": lambda x: x[x.argsort()],
    "as many repetitions": lambda x: x.repeat_interleave(2),
    "the host's own": lambda x: torch.tensor([1.0, 2.0]).nonzero().tolist(),
}


def waits(call, device):
    x = torch.tensor([1.0, 2.0, 3.0]).to(device)
    with WaitCounter([x]) as counter:
        call(x)
    return len(counter.waits)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_waits(device):
    assert {name: waits(call, device) for name, call in WAITS.items()} == dict.fromkeys(WAITS, 1)
    assert {name: waits(call, device) for name, call in NO_WAITS.items()} == dict.fromkeys(NO_WAITS, 0)


def test_a_wait_names_its_line(build):
    model = build().to("gpu")
    with WaitCounter() as counter:
        model.mask_decoder.positions().sum().item()
        features = model.encode_images([torch.zeros(3, 9, 9, dtype=torch.uint8).to("gpu")])
        model.queries(features, torch.zeros(1, 32, device="gpu"))
    assert counter.waits[0].startswith("elsewhere: aten._local_scalar_dense")
    assert counter.waits[1].startswith("inference/queries.py:")
    assert counter.uploads[0].startswith("elsewhere: aten._to_copy")


def test_devices_do_not_mix():
    x = torch.ones(3, device="gpu")
    assert (x + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]
    for call in (lambda: x + torch.ones(3), lambda: x[torch.tensor([0, 1])], lambda: x.sum() * torch.ones(3)):
        with pytest.raises(RuntimeError, match="meets two devices"):
            call()
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
