"""Small trainings for tests, in this process or in fresh ones."""

import contextlib
import importlib
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
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from panopticapi.utils import id2rgb
from PIL import Image

from openworldsam.config import load_config
from openworldsam.engine import training_state
from openworldsam.engine.checks import check_training
from openworldsam.engine.train import run_training
from openworldsam.engine.trainer import Trainer
from openworldsam.utils.launch import launch

ROOT = Path(__file__).parents[2]
CLASSES = ("cat", "grass", "sky")
ONE_STEP = ["MODEL.ADAPTER.DROPOUT", 0.0, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", [], "SOLVER.IMS_PER_BATCH", 4]
"""A step whose images have between one and three prompts, so that the processes' shares differ."""


def make_dataset(folder, num_images=6):
    """Write pictures of coloured rectangles with panoptic PNGs, and records.json; returns the folder."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    records = []
    for index in range(num_images):
        height, width = int(generator.integers(40, 60)), int(generator.integers(40, 60))
        ids = np.ones((height, width), dtype=np.uint32)
        ids[: height // 3] = 2
        ids[height // 2 : height // 2 + 8, 5:15] = 3
        ids[height // 2 : height // 2 + 8, 20:30] = 4
        image = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
        for segment, colour in enumerate([(0, 90, 0), (0, 0, 150), (150, 0, 0), (150, 50, 0)], start=1):
            image[ids == segment] += np.array(colour, dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{index}.png")
        segments = [(1, 1), (2, 2), (3, 0), (4, 0)]
        for absent in segments[: index % 3]:  # void, so that images differ in their number of classes
            ids[ids == absent[0]] = 0
        Image.fromarray(id2rgb(ids)).save(folder / f"{index}_panoptic.png")
        records.append(
            {
                "file_name": str(folder / f"{index}.png"), "image_id": index, "height": height, "width": width,
                "pan_seg_file_name": str(folder / f"{index}_panoptic.png"),
                "segments_info": [
                    {"id": i, "category_id": c, "iscrowd": 0, "isthing": c == 0} for i, c in segments[index % 3 :]
                ],
            }
        )  # fmt: skip
    (folder / "records.json").write_text(json.dumps(records))
    return folder


def register(folder):
    """Register the records.json of a folder under its own name; returns the name."""
    name = f"rectangles_{folder.name}"
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: json.loads((folder / "records.json").read_text()))
        MetadataCatalog.get(name).set(vocabulary=CLASSES, is_thing=(True, False, False))
    return name


def training_cfg(data, weights, output, *opts):
    """The config of six steps on the tiny model; its datasets are registered."""
    cfg = load_config(
        ROOT / "configs/tiny.yaml",
        ["MODEL.WEIGHTS", str(weights / "model_final.pth"),
         "MODEL.PROMPT_ENCODER.TOKENIZER", str(weights / "beit3.spm"),
         "DATASETS.TRAIN", [register(data)], "OUTPUT_DIR", str(output), "SOLVER.IMS_PER_BATCH", 2,
         "SOLVER.MAX_ITER", 6, "SOLVER.STEPS", [4], "SOLVER.CHECKPOINT_PERIOD", 3, "DATALOADER.NUM_WORKERS", 0,
         "SOLVER.BASE_LR", 0.001, *opts],
    )  # fmt: skip
    check_training(cfg)
    return cfg


def adapter_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.adapter.named_parameters()}


class Recorder(Trainer):
    """Keeps the gradients of the last step, before clipping."""

    def _backward(self, batches):
        losses = super()._backward(batches)
        self.gradients = {name: p.grad.clone() for name, p in self.model.adapter.named_parameters()}
        return losses


def gradients(cfg):
    trainer = Recorder(cfg)
    trainer.train(0, trainer.max_iter)
    return trainer.gradients


def assert_same_gradients(a, b):
    """To 1e-5 of each tensor's norm: single values may cancel to rounding noise."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).norm() <= 1e-5 * b[name].norm() + 1e-9, name


def trained(cfg, resume=False, hooks=()):
    """The trainer of a training that is over."""
    trainer = Trainer(cfg)
    if resume:
        training_state.resume(trainer)
    trainer.register_hooks(hooks)
    run_training(trainer)
    return trainer


def run(cfg, resume=False):
    """Train; returns the adapter."""
    return adapter_of(trained(cfg, resume))


def assert_same(a, b):
    """Tensors, or containers of them, are equal to the bit."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def read_metrics(folder):
    """The lines of metrics.json."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from trainings import gradients, run, training_cfg
from openworldsam.utils.launch import launch

def main():
    what, data, weights, output, *opts = sys.argv[2:]
    from detectron2.utils import comm
    cfg = training_cfg(Path(data), Path(weights), Path(output), *opts)
    result = gradients(cfg) if what == "gradients" else run(cfg, resume=True)
    if comm.is_main_process():
        Path(output).mkdir(exist_ok=True)
        torch.save(result, Path(output) / "result.pth")

if __name__ == "__main__":
    launch(main, num_gpus=int(sys.argv[1]))
"""


def start(tmp_path, num_processes, what, data, weights, output, *opts, torchrun=False):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, script]
    if torchrun:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_processes), script]
    return subprocess.Popen(
        [*command, str(num_processes), what, data, weights, output, *map(str, opts)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


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
            [sys.executable, "-c", f"{code}; import trainings; trainings.serve()"],
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
    """Train on one process; returns its final state."""
    losses = Losses()
    trainer = trained(training_cfg(Path(data), Path(weights), Path(output), *opts), resume, [losses, *hooks])
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
