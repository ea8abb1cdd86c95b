import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from openworldsam.config import load_config
from openworldsam.engine import Trainer
from openworldsam.engine.training_state import newest_state

ROOT = Path(__file__).parents[2]
CLASSES = ("cat", "grass", "sky")
ONE_STEP = ["MODEL.ADAPTER.DROPOUT", 0.0, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", [], "SOLVER.IMS_PER_BATCH", 4]
"""A step whose images have between one and three prompts, so that the processes' shares differ."""


def make_dataset(folder, num_images=6):
    """Pictures of coloured rectangles with panoptic PNGs, as records."""
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
    return records


def register(folder):
    """Register the records.json of a folder under its own name; returns the name."""
    name = f"rectangles_{folder.name}"
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: json.loads((folder / "records.json").read_text()))
        MetadataCatalog.get(name).set(
            vocabulary=CLASSES, is_thing=(True, False, False), evaluator_type="coco_panoptic_seg"
        )
    return name


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rectangles")
    (folder / "records.json").write_text(json.dumps(make_dataset(folder)))
    return folder


def training_cfg(data, weights, output, *opts):
    return load_config(
        ROOT / "configs/tiny.yaml",
        ["MODEL.WEIGHTS", str(weights / "model_final.pth"),
         "MODEL.PROMPT_ENCODER.TOKENIZER", str(weights / "beit3.spm"),
         "DATASETS.TRAIN", [register(data)], "OUTPUT_DIR", str(output), "SOLVER.IMS_PER_BATCH", 2,
         "SOLVER.MAX_ITER", 6, "SOLVER.STEPS", [4], "SOLVER.CHECKPOINT_PERIOD", 3, "DATALOADER.NUM_WORKERS", 0,
         "SOLVER.BASE_LR", 0.001, *opts],
    )  # fmt: skip


def adapter_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.adapter.named_parameters()}


class Recorder(Trainer):
    """Keeps the gradients of the last step, before clipping."""

    def _backward(self, parts):
        losses = super()._backward(parts)
        self.gradients = {name: p.grad.clone() for name, p in self.model.adapter.named_parameters()}
        return losses


def gradients(cfg):
    trainer = Recorder(cfg)
    trainer.run()
    return trainer.gradients


def assert_same_gradients(a, b):
    """To 1e-5 of each tensor's norm: single values may cancel to rounding noise."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).norm() <= 1e-5 * b[name].norm() + 1e-9, name


def run(cfg, resume=False):
    trainer = Trainer(cfg)
    if resume:
        trainer.resume()
    trainer.run()
    return adapter_of(trainer)


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_the_same_seed_gives_the_same_training(data, tiny_weights, tmp_path):
    first = run(training_cfg(data, tiny_weights, tmp_path / "a"))
    assert_same(run(training_cfg(data, tiny_weights, tmp_path / "b")), first, rtol=0, atol=0)
    other = run(training_cfg(data, tiny_weights, tmp_path / "c", "SEED", 7))
    assert any(not torch.equal(other[name], first[name]) for name in first)


def test_resuming_equals_never_having_stopped(data, tiny_weights, tmp_path):
    whole = run(training_cfg(data, tiny_weights, tmp_path / "whole"))
    run(training_cfg(data, tiny_weights, tmp_path / "parts", "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", []))
    resumed = run(training_cfg(data, tiny_weights, tmp_path / "parts"), resume=True)
    assert_same(resumed, whole, rtol=0, atol=0)


def test_the_number_of_workers_changes_nothing(data, tiny_weights, tmp_path):
    opts = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", []]
    alone = run(training_cfg(data, tiny_weights, tmp_path / "a", *opts))
    assert_same(run(training_cfg(data, tiny_weights, tmp_path / "b", *opts, "DATALOADER.NUM_WORKERS", 2)), alone)


def test_accumulated_parts_give_the_gradients_of_the_whole_batch(data, tiny_weights, tmp_path):
    whole = gradients(training_cfg(data, tiny_weights, tmp_path / "a", *ONE_STEP))
    parts = gradients(training_cfg(data, tiny_weights, tmp_path / "b", *ONE_STEP, "SOLVER.ACCUMULATE", 2))
    assert_same_gradients(parts, whole)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_trainer import gradients, run, training_cfg
from openworldsam.utils.launch import launch

def main():
    what, data, weights, output, *opts = sys.argv[2:]
    from detectron2.utils import comm
    cfg = training_cfg(Path(data), Path(weights), Path(output), *opts)
    result = gradients(cfg) if what == "gradients" else run(cfg, resume=True)
    if comm.is_main_process():
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


@pytest.mark.parametrize("torchrun", [False, True], ids=["launch", "torchrun"])
def test_two_processes_equal_one(data, tiny_weights, tmp_path, torchrun):
    one = gradients(training_cfg(data, tiny_weights, tmp_path / "one", *ONE_STEP))
    process = start(tmp_path, 2, "gradients", data, tiny_weights, tmp_path / "two", *ONE_STEP, torchrun=torchrun)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert_same_gradients(torch.load(tmp_path / "two/result.pth"), one)


def test_a_kill_at_any_moment_loses_nothing(data, tiny_weights, tmp_path):
    opts = ["SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 1]
    whole = run(training_cfg(data, tiny_weights, tmp_path / "whole", *opts))
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
    resumed = run(training_cfg(data, tiny_weights, tmp_path / "killed", *opts), resume=True)
    assert_same(resumed, whole, rtol=0, atol=0)
