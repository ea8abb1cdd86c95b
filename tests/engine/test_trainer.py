import signal
import time

import pytest
import torch
from detectron2.utils import comm
from processes import is_running
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from trainings import ONE_STEP, assert_same, assert_same_gradients, gradients, recorded_gradients, run, train

from openworldsam.engine.training_state import newest_state
from openworldsam.utils.launch import launch


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


def launch_both(*args):
    """`recorded_gradients` on two processes that this one starts, as `--num-gpus 2` does."""
    launch(save_gradients, num_gpus=2, args=args)


def save_gradients(data, weights, output, opts):
    found = recorded_gradients(data, weights, output, opts)
    torch.save(found, output / f"gradients_{comm.get_rank()}.pth")


def torchrun_both(data, weights, output, opts):
    """`save_gradients` on two processes that torchrun's agent starts."""
    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", start_method="fork")
    elastic_launch(config, launch_save)(data, weights, output, opts)


def launch_save(*args):
    launch(save_gradients, args=args)


@pytest.mark.parametrize("start", [launch_both, torchrun_both])
def test_two_processes_equal_one(make_cfg, processes, data, tiny_weights, tmp_path, start):
    one = gradients(make_cfg("one", *ONE_STEP))
    processes.values(start, data, tiny_weights, tmp_path, ONE_STEP)
    for rank in range(2):
        assert_same_gradients(torch.load(tmp_path / f"gradients_{rank}.pth"), one)


def test_a_kill_at_any_moment_loses_nothing(make_cfg, processes, data, tiny_weights, tmp_path):
    opts = ["SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 1]
    whole = run(make_cfg("whole", *opts))
    for wait in (0.3, 0.15, 0.05):
        before = newest_state(tmp_path / "killed")
        training = processes.start(train, data, tiny_weights, tmp_path / "killed", opts, before is not None)
        while newest_state(tmp_path / "killed") == before and is_running(training.pids[0]):
            time.sleep(0.01)
        time.sleep(wait)
        training.send(signal.SIGKILL)
        (ended,) = training.ended()
        assert ended.status == -signal.SIGKILL, ended.stderr
    resumed = run(make_cfg("killed", *opts), resume=True)
    assert_same(resumed, whole)
