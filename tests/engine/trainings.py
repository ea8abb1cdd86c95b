"""Small trainings for tests."""

import json
from pathlib import Path

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


NO_DROPOUT = ["MODEL.ADAPTER.DROPOUT", 0.0]


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
