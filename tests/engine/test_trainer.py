import os
import signal
import time
from pathlib import Path

import pytest
import torch
from trainings import ONE_STEP, assert_same, assert_same_gradients, gradients, run, start

from openworldsam.engine.training_state import newest_state

ROOT = Path(__file__).parents[2]


def test_the_same_seed_gives_the_same_training(make_cfg):
    first = run(make_cfg("a"))
    assert_same(run(make_cfg("b")), first)
    other = run(make_cfg("c", "SEED", 7))
    assert any(not torch.equal(other[name], first[name]) for name in first)


def test_resuming_equals_never_having_stopped(make_cfg):
    whole = run(make_cfg("whole"))
    run(make_cfg("parts", "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", []))
    resumed = run(make_cfg("parts"), resume=True)
    assert_same(resumed, whole)


def test_the_number_of_workers_changes_nothing(make_cfg):
    opts = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", []]
    alone = run(make_cfg("a", *opts))
    assert_same(run(make_cfg("b", *opts, "DATALOADER.NUM_WORKERS", 2)), alone)


def test_accumulated_parts_give_the_gradients_of_the_whole_batch(make_cfg):
    whole = gradients(make_cfg("a", *ONE_STEP))
    parts = gradients(make_cfg("b", *ONE_STEP, "SOLVER.ACCUMULATE", 2))
    assert_same_gradients(parts, whole)


@pytest.mark.parametrize("torchrun", [False, True], ids=["launch", "torchrun"])
def test_two_processes_equal_one(make_cfg, data, tiny_weights, tmp_path, torchrun):
    one = gradients(make_cfg("one", *ONE_STEP))
    process = start(tmp_path, 2, "gradients", data, tiny_weights, tmp_path / "two", *ONE_STEP, torchrun=torchrun)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert_same_gradients(torch.load(tmp_path / "two/result.pth"), one)


def test_a_kill_at_any_moment_loses_nothing(make_cfg, data, tiny_weights, tmp_path):
    opts = ["SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 1]
    whole = run(make_cfg("whole", *opts))
    killed = 0
    for wait in (0.3, 0.15, 0.05):
        process = start(tmp_path, 1, "run", data, tiny_weights, tmp_path / "killed", *opts)
        before = newest_state(tmp_path / "killed")
        deadline = time.time() + 60
        while newest_state(tmp_path / "killed") == before and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert killed == 3
    resumed = run(make_cfg("killed", *opts), resume=True)
    assert_same(resumed, whole)
