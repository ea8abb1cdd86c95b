"""The keys of Detectron2 that are said to have an effect are those that are read."""

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_lr_scheduler
from trainings import trained

from openworldsam import OpenWorldSAMPredictor
from openworldsam.config import DETECTRON2_KEYS, load_config
from openworldsam.engine.checks import check_evaluation
from openworldsam.evaluation.benchmark import evaluate


@pytest.fixture
def read_keys(monkeypatch):
    """Dotted keys that are read of configs whose sections `named` has named."""
    read = set()

    def recorded(node, key):
        read.add(node.__dict__.get("section", "") + key)
        return dict.__getitem__(node, key)

    def attribute(node, key):
        if key in node:
            return recorded(node, key)
        raise AttributeError(key)

    monkeypatch.setattr(CfgNode, "__getattr__", attribute)
    monkeypatch.setattr(CfgNode, "__getitem__", recorded, raising=False)
    return read


def named(cfg, section=""):
    """Tell each section of a config, and of its copies, the keys that lead to it."""
    cfg.__dict__["section"] = section
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            named(value, f"{section}{key}.")
    return cfg


def leaves(cfg, section=""):
    for key, value in cfg.items():
        yield from leaves(value, f"{section}{key}.") if isinstance(value, CfgNode) else [f"{section}{key}"]


def test_the_keys_with_an_effect_are_those_that_are_read(make_cfg, tmp_path, read_keys):
    theirs, cfg = set(leaves(get_cfg())), make_cfg()
    (tmp_path / "written.yaml").write_text(cfg.dump())
    load_config(tmp_path / "written.yaml")
    versions = read_keys & {"VERSION"}  # the one key that loading itself reads
    read_keys.clear()
    named(cfg)
    trainer = trained(cfg)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    build_lr_scheduler(cfg, trainer.optimizer)
    cfg.DATASETS.TEST, cfg.TEST.MAX_IMAGES = ["shapes_val"], 1
    check_evaluation(cfg)
    evaluate(cfg, trainer.model.eval())
    OpenWorldSAMPredictor(cfg).set_image(np.zeros((20, 30, 3), np.uint8))
    assert (read_keys & theirs) | versions == DETECTRON2_KEYS
