"""The benchmark's column of waits: what it counts on the CPU is what a device would see."""

import pytest

from openworldsam.speed.measure import operations_and_waits
from openworldsam.speed.pipeline import Pipeline, State, encoded_image
from openworldsam.speed.training import training_step
from openworldsam.speed.waits import WaitCounter


def counts(cfg, model):
    """Operations and waits of every stage and of a training step."""
    pipeline, state = Pipeline("ours", cfg, model, encoded_image(None), random=False), State()
    pipeline.ask(3)
    calls = [lambda stage=stage: getattr(pipeline, stage.method)(state) for stage in pipeline.stages.values()]
    counter = WaitCounter([*model.parameters(), *model.buffers()])
    return [operations_and_waits(call, counter) for call in (*calls, training_step(pipeline, 1, "no cache"))]


@pytest.mark.parametrize("hidden", [0, 8])
def test_the_cpus_waits_are_a_devices(tiny_cfg, build, hidden):
    opts = ("MODEL.SCORE_HEAD.HIDDEN", hidden)
    cpu, device = (counts(tiny_cfg, build(*opts, weights=not hidden).to(name)) for name in ("cpu", "gpu"))
    assert cpu == device and len(cpu) == (8 if hidden else 7)
    assert 0 < sum(waits for _, waits in cpu[:-1]) <= 6
