"""Training on a device: the CPU's losses and weights, and few waits a step whatever the number of prompts."""

from pathlib import Path

import pytest
from comparison import assert_same, waits
from detectron2.data import DatasetCatalog, MetadataCatalog

from openworldsam.config import load_config
from openworldsam.data.datasets import register_datasets
from openworldsam.engine.cache_features import build_cache
from openworldsam.engine.train import run_training
from openworldsam.engine.trainer import Trainer

ROOT = Path(__file__).parents[2]
MOST = 10
"""Waits of a step."""
HEAD = ["MODEL.SCORE_HEAD.HIDDEN", 8, "MODEL.CRITERION.SCORE_WEIGHT", 1.0]


@pytest.fixture(scope="module")
def scenes():
    """A dataset of four scenes of Shapes."""
    register_datasets(load_config(ROOT / "configs/shapes/paper.yaml"))
    records, metadata = DatasetCatalog.get("shapes_train")[:4], MetadataCatalog.get("shapes_train")
    DatasetCatalog.register("four_scenes", lambda: records)
    MetadataCatalog.get("four_scenes").set(vocabulary=metadata.vocabulary, is_thing=metadata.is_thing)
    yield "four_scenes"
    DatasetCatalog.remove("four_scenes")


class CountingTrainer(Trainer):
    """Counts the waits of each step."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.waits = []

    def run_step(self):
        _, number = waits(super().run_step)
        self.waits.append(number)

    @property
    def losses(self):
        return [value for value, _ in self.storage.history("total_loss").values()]


@pytest.fixture
def train(tiny_cfg, scenes, tmp_path):
    def run(device, *opts):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(
            ["MODEL.DEVICE", device, "DATASETS.TRAIN", [scenes], "OUTPUT_DIR", str(tmp_path / device),
             "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", [], "SOLVER.PICTURE_PERIOD", 2,
             "SOLVER.BASE_LR", 0.001, "DATALOADER.NUM_WORKERS", 0, *opts]
        )  # fmt: skip
        trainer = CountingTrainer(cfg)
        run_training(trainer)
        assert max(trainer.waits) <= MOST
        return trainer

    return run


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("image_features", [None, "none", "all"])
def test_training_is_the_cpus(train, tiny_cfg, scenes, tmp_path, image_features):
    opts = []
    if image_features:
        cfg = tiny_cfg.clone()
        cfg.DATASETS.TRAIN = [scenes]
        build_cache(cfg, tmp_path / "cache", image_features=image_features)
        opts = ["DATASETS.FEATURE_CACHE", str(tmp_path / "cache")]
    device, cpu = train("gpu", *opts), train("cpu", *opts)
    assert_same(device.losses, cpu.losses)
    assert_same(device.model.adapter.state_dict(), cpu.model.adapter.state_dict())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_half_precision(train, precision):
    device, cpu = (train(name, "MODEL.PRECISION", precision) for name in ("gpu", "cpu"))
    assert device.losses[0] == cpu.losses[0]
    assert device.losses[1] == pytest.approx(cpu.losses[1], rel=1e-2)  # gradients are rounded in another order


@pytest.mark.parametrize("adapter", [True, False], ids=["together", "head alone"])
def test_a_score_head_and_absent_prompts(train, adapter):
    """The CPU's losses, weights and confusions; at most one more wait."""
    opts = [*HEAD, "INPUT.NEGATIVES", 3, "MODEL.ADAPTER.TRAINABLE", adapter]
    opts += [] if adapter else ["MODEL.CRITERION.MASK_WEIGHT", 0.0]
    device, cpu = train("gpu", *opts), train("cpu", *opts)
    assert_same(device.losses, cpu.losses)
    assert_same(device.model.score_head.state_dict(), cpu.model.score_head.state_dict())
    assert device.confusions.scores == cpu.confusions.scores and len(cpu.confusions.scores) > 3
    assert max(device.waits) <= max(train("gpu").waits) + 1


@pytest.mark.parametrize(
    "opts",
    [[], ["MODEL.ADAPTER.NUM_TIE_BREAKERS", 1], [*HEAD, "INPUT.NEGATIVES", 3]],
    ids=["masks", "one query", "score head"],
)
def test_the_waits_do_not_depend_on_the_number_of_prompts(train, opts):
    opts = [*opts, "INPUT.MAX_PROMPTS", 3, "SOLVER.MAX_ITER", 1]  # on each image
    few, many = (train("gpu", *opts, "SOLVER.IMS_PER_BATCH", images) for images in (1, 7))
    assert few.waits == many.waits
