"""Training on two processes is training on one: real images, resuming, accumulation, steps that overflow."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from processes import ALONE, TIME_LIMIT
from trainings import (
    NO_DROPOUT,
    adapter_of,
    assert_same,
    assert_same_gradients,
    read_metrics,
    recorded_gradients,
    train,
)

from openworldsam.checkpoint import read_weights
from openworldsam.data.loader import training_dataset

ROOT = Path(__file__).parents[2]
REAL = "coco_2017_val_panoptic_openworldsam"


@pytest.fixture
def coco_root(shared, tmp_path):
    """Three real COCO images where the catalog looks for those of val2017."""
    sample, coco = shared / "data/coco_panoptic_sample", tmp_path / "datasets/coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "annotations/panoptic_val2017.json").symlink_to(sample / "panoptic.json")
    (coco / "panoptic_val2017").symlink_to(sample / "panoptic")
    (coco / "val2017").symlink_to(sample / "images")
    return coco.parent


def train_from_root(root, *args):
    """`train` on a dataset of the catalog."""
    os.environ["DETECTRON2_DATASETS"] = str(root)
    return train(*args)


def test_real_images_on_two_processes(processes, coco_root, data, tiny_weights, tmp_path):
    """The whole command, whose processes are spawned: the loss falls, the adapter is written, and the steps are those
    of one process."""
    solver = ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.LOG_PERIOD", 1, "SOLVER.BASE_LR", 0.002]
    opts = [*NO_DROPOUT, *solver, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, "DATASETS.TRAIN", [REAL]]
    weights = ["MODEL.WEIGHTS", tiny_weights / "model_final.pth"]
    weights += ["MODEL.PROMPT_ENCODER.TOKENIZER", tiny_weights / "beit3.spm"]
    steps = ["SOLVER.MAX_ITER", 8, "SOLVER.STEPS", [], "OUTPUT_DIR", tmp_path / "two", "DATALOADER.NUM_WORKERS", 0]
    tool = [sys.executable, ROOT / "tools/train_net.py", "--config-file", ROOT / "configs/tiny.yaml"]
    done = subprocess.run(
        [*tool, "--num-gpus", "2", *map(str, [*weights, *opts, *steps])], timeout=TIME_LIMIT, capture_output=True,
        text=True, env=os.environ | ALONE | {"DETECTRON2_DATASETS": str(coco_root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path / "two")
    medians = [line["total_loss"] for line in lines]  # over up to 20 steps
    assert len(medians) == 8 and lines[-1]["skipped_images"] == 0
    assert medians[-1] < 0.8 * medians[0]
    state = torch.load(tmp_path / "two/state_0000008.pth", weights_only=True)["trained"]
    adapter = read_weights(tmp_path / "two/adapter.safetensors").components["adapter"]
    assert adapter.keys() == state.keys() and all(torch.equal(adapter[name], state[name]) for name in state)

    few = [*opts, "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", []]
    (one,) = processes.values(train_from_root, coco_root, data, tiny_weights, tmp_path / "one", few)
    expected = [np.median(one["losses"][: step + 1]) for step in range(3)]
    assert medians[0] == pytest.approx(expected[0], rel=1e-5)
    assert medians[:3] == pytest.approx(expected, rel=1e-3)


def test_resuming_on_two_processes_equals_never_having_stopped(processes, data, tiny_weights, tmp_path):
    """Random state of each process, and the count of skipped images, which is of all of them."""
    (data / "2.png").write_bytes(b"nothing")
    (data / "4_panoptic.png").unlink()

    def run(folder, *opts, resume=False):
        return processes.values(train, data, tiny_weights, tmp_path / folder, opts, resume, processes=2)

    whole = run("whole")
    before = run("parts", "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", [])
    resumed = run("parts", resume=True)
    assert 0 < before[0]["skipped"] < whole[0]["skipped"]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours["losses"] == theirs["losses"][3:]
        assert ours["skipped"] == theirs["skipped"]
        assert_same((ours["adapter"], ours["random"]), (theirs["adapter"], theirs["random"]))
    assert not torch.equal(whole[0]["random"], whole[1]["random"])
    assert_same(whole[0]["adapter"], whole[1]["adapter"])


def test_accumulation_on_two_processes_equals_one_whole_batch(make_cfg, processes, data, tiny_weights, tmp_path):
    opts = [*NO_DROPOUT, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", []]
    dataset = training_dataset(make_cfg("out", *opts))
    counts = [len(dataset[position]["prompts"]) for position in range(4)]
    assert len(set(counts)) > 1 and counts[0] + counts[2] != counts[1] + counts[3]
    (one,) = processes.values(train, data, tiny_weights, tmp_path / "one", opts)
    opts = [*opts, "SOLVER.ACCUMULATE", 2]
    for four in processes.values(train, data, tiny_weights, tmp_path / "four", opts, processes=2):
        assert four["losses"] == pytest.approx(one["losses"], rel=1e-5)


def test_accumulation_on_two_processes_gives_the_gradients_of_one_whole_batch(processes, data, tiny_weights, tmp_path):
    opts = [*NO_DROPOUT, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", []]
    (one,) = processes.values(recorded_gradients, data, tiny_weights, tmp_path / "one", opts)
    opts = [*opts, "SOLVER.ACCUMULATE", 2]
    for four in processes.values(recorded_gradients, data, tiny_weights, tmp_path / "four", opts, processes=2):
        assert_same_gradients(four, one)


class Overflow(HookBase):
    """Makes a gradient of the last process infinite in one step, and keeps the adapter after every step."""

    def __init__(self, iteration):
        self.iteration = iteration
        self.adapters, self.scales = [], []

    def before_train(self):
        if comm.get_rank() == comm.get_world_size() - 1:
            infinite = torch.tensor(torch.inf)
            self.trainer.model.adapter.tie_breakers.register_hook(
                lambda gradient: gradient * infinite if self.trainer.iter == self.iteration else gradient
            )
        self._keep()

    def after_step(self):
        self._keep()

    def _keep(self):
        self.adapters.append(adapter_of(self.trainer))
        self.scales.append(self.trainer.scaler.get_scale())


def train_with_overflow(data, weights, output, opts, iteration, resume=False):
    """`train` with one step that overflows."""
    kept = Overflow(iteration)
    result = train(data, weights, output, opts, resume, [kept])
    return {**result, "adapters": kept.adapters, "scales": kept.scales}


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_that_overflows_is_left_out_and_the_scale_is_kept(processes, data, tiny_weights, tmp_path, number):
    """fp16, whose gradient scaler is the same on the CPU; one process overflows, all leave the step out."""

    def run(folder, *opts, resume=False):
        args = (data, tiny_weights, tmp_path / folder, ["MODEL.PRECISION", "fp16", *opts], 1, resume)
        return processes.values(train_with_overflow, *args, processes=number)

    whole = run("whole")
    run("parts", "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", [])
    resumed = run("parts", resume=True)
    for ours, theirs in zip(resumed, whole, strict=True):
        adapters, scales = theirs["adapters"], theirs["scales"]
        changed = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(adapters)]
        assert changed == [True, False, True, True, True, True]
        assert scales == [scales[0]] * 2 + [scales[0] / 2] * 5
        assert ours["scaler"] == theirs["scaler"] and ours["scales"] == scales[3:]
        assert ours["losses"] == theirs["losses"][3:]
        assert_same(ours["adapter"], theirs["adapter"])
        assert_same(theirs["adapter"], whole[0]["adapter"])
