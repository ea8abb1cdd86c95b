"""Training on two processes is training on one: real images, resuming, accumulation, steps that overflow."""

import contextlib
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from test_trainer import adapter_of, assert_same_gradients, gradients, make_dataset, training_cfg

from openworldsam.checkpoint import read_weights
from openworldsam.data.loader import training_dataset
from openworldsam.engine import Trainer
from openworldsam.utils.launch import launch

ROOT = Path(__file__).parents[2]
EXACT = {"rtol": 0, "atol": 0}
NO_DROPOUT = ["MODEL.ADAPTER.DROPOUT", 0.0]
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of a process whose sums do not depend on the machine."""
TIME_LIMIT = 60
"""Seconds after which a process ends by itself: the ones of a training may wait for each other for ever."""


class Ended(NamedTuple):
    """A process that is over: exit status, or minus the signal; what its function returned; what it wrote."""

    status: int
    value: Any
    stdout: str
    stderr: str


class Processes:
    """Runs functions of test modules in fresh processes, forked from one that has imported everything.

    So a training costs no import, and one that is killed takes nothing with it.
    """

    def __init__(self, folder):
        self.folder, self.runs = folder, 0
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
        self.server = subprocess.Popen(
            [sys.executable, "-c", f"{code}; import test_training_processes as own; own.serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ALONE, start_new_session=True,
        )  # fmt: skip

    def __call__(self, function, *args, processes=1):
        """Call a function on every process of a training; returns a list of `Ended`, by rank."""
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        request = [function.__module__, function.__name__, args, processes, str(folder)]
        self.server.stdin.write(json.dumps(request, default=str) + "\n")
        self.server.stdin.flush()
        return [
            Ended(
                status,
                torch.load(value) if (value := folder / f"{rank}.pth").exists() else None,
                (folder / f"{rank}.out").read_text(),
                (folder / f"{rank}.err").read_text(),
            )
            for rank, status in enumerate(json.loads(self.server.stdout.readline()))
        ]

    def values(self, function, *args, processes=1):
        """What the function returned on every process; they must all have ended well."""
        ended = self(function, *args, processes=processes)
        assert [end.status for end in ended] == [0] * processes, "\n".join(end.stderr for end in ended)
        return [end.value for end in ended]


@contextlib.contextmanager
def forked_processes(folder):
    """`Processes` that end with the block."""
    processes = Processes(folder)
    try:
        yield processes
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(processes.server.pid, signal.SIGKILL)
        processes.server.communicate()


def serve():
    """Fork for every request on stdin, and answer with the exit statuses."""
    for slow in ("torch._dynamo", "torch.utils.tensorboard"):  # which the first step and the first log would import
        importlib.import_module(slow)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for answers alone
    for line in sys.stdin:
        module, name, args, processes, folder = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(processes):
            children.append(os.fork())
            if not children[-1]:
                _child(module, name, args, (rank, processes, port), Path(folder))
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        answers.write(json.dumps(statuses) + "\n")
        answers.flush()


def _child(module, name, args, place, folder):
    """A forked process, from here to its end; `place` is rank, number of processes, and the port they meet at."""
    signal.alarm(TIME_LIMIT)
    rank, processes, port = place
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    if processes > 1:  # as torchrun does
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({key: str(value) for key, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    status = 1
    try:
        torch.save(launch(getattr(importlib.import_module(module), name), args=tuple(args)), folder / f"{rank}.pth")
        status = 0
    except SystemExit as exited:
        status = exited.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Losses(HookBase):
    """Keeps every step's loss; metrics.json has medians of them."""

    def __init__(self):
        self.values = []

    def after_step(self):
        self.values.append(self.trainer.storage.history("total_loss").latest())


def train(data, weights, output, opts, resume=False, hooks=()):
    """What one process of a training ends up with."""
    trainer = Trainer(training_cfg(Path(data), Path(weights), Path(output), *opts))
    if resume:
        trainer.resume()
    losses = Losses()
    trainer.register_hooks([losses, *hooks])
    trainer.run()
    return {
        "losses": losses.values,
        "adapter": adapter_of(trainer),
        "skipped": trainer.all_skipped,
        "scaler": trainer.scaler.state_dict(),
        "random": torch.get_rng_state(),
    }


def recorded_gradients(data, weights, output, opts):
    """The gradients of the last step on one process."""
    return gradients(training_cfg(Path(data), Path(weights), Path(output), *opts))


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    with forked_processes(tmp_path_factory.mktemp("processes")) as started:
        yield started


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / f"data_{tmp_path.name}"
    folder.mkdir()
    (folder / "records.json").write_text(json.dumps(make_dataset(folder)))
    return folder


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
    os.environ["DETECTRON2_DATASETS"] = root
    return train(*args)


def test_real_images_on_two_processes(processes, coco_root, data, tiny_weights, tmp_path):
    """The whole command: the loss falls, the adapter is written, the steps are those of one process."""
    solver = ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.LOG_PERIOD", 1, "SOLVER.BASE_LR", 0.002]
    opts = [*NO_DROPOUT, *solver, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, "DATASETS.TRAIN", [REAL]]
    weights = ["MODEL.WEIGHTS", tiny_weights / "model_final.pth"]
    weights += ["MODEL.PROMPT_ENCODER.TOKENIZER", tiny_weights / "beit3.spm"]
    steps = ["SOLVER.MAX_ITER", 15, "SOLVER.STEPS", [], "OUTPUT_DIR", tmp_path / "two", "DATALOADER.NUM_WORKERS", 0]
    tool = [sys.executable, ROOT / "tools/train_net.py", "--config-file", ROOT / "configs/tiny.yaml"]
    done = subprocess.run(
        [*tool, "--num-gpus", "2", *map(str, [*weights, *opts, *steps])],
        env=os.environ | ALONE | {"DETECTRON2_DATASETS": str(coco_root)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "two/metrics.json").read_text().splitlines()]
    medians = [line["total_loss"] for line in lines]  # over up to 20 steps
    assert len(medians) == 15 and lines[-1]["skipped_images"] == 0
    assert medians[-1] < 0.6 * medians[0]
    state = torch.load(tmp_path / "two/state_0000015.pth", weights_only=True)["trained"]
    adapter = read_weights(tmp_path / "two/adapter.safetensors").components["adapter"]
    assert adapter.keys() == state.keys() and all(torch.equal(adapter[name], state[name]) for name in state)

    few = [*opts, "SOLVER.MAX_ITER", 5, "SOLVER.STEPS", []]
    (one,) = processes.values(train_from_root, coco_root, data, tiny_weights, tmp_path / "one", few)
    expected = [np.median(one["losses"][: step + 1]) for step in range(5)]
    assert medians[0] == pytest.approx(expected[0], rel=1e-5)
    assert medians[:5] == pytest.approx(expected, rel=1e-3)


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
        torch.testing.assert_close((ours["adapter"], ours["random"]), (theirs["adapter"], theirs["random"]), **EXACT)
    assert not torch.equal(whole[0]["random"], whole[1]["random"])
    torch.testing.assert_close(whole[0]["adapter"], whole[1]["adapter"], **EXACT)


def test_accumulation_on_two_processes_equals_one_whole_batch(processes, data, tiny_weights, tmp_path):
    opts = [*NO_DROPOUT, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", []]
    dataset = training_dataset(training_cfg(data, tiny_weights, tmp_path, *opts))
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
        torch.testing.assert_close(ours["adapter"], theirs["adapter"], **EXACT)
        torch.testing.assert_close(theirs["adapter"], whole[0]["adapter"], **EXACT)
