"""Fig. 3 and two-stage inference: measurements, pictures and captions."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch.nn.functional import max_pool2d

from openworldsam.ablation import figures
from openworldsam.ablation.figures import draw_figures
from openworldsam.ablation.observations import Equal, observe, specialisation
from openworldsam.config import load_config
from openworldsam.data.datasets import register_datasets
from openworldsam.evaluation.examples import EvaluationDataset
from openworldsam.inference import Queries
from openworldsam.modeling import OpenWorldSAM

CONFIG = Path(__file__).parents[2] / "configs/shapes/paper.yaml"


@pytest.fixture
def cfg(opts, tmp_path):
    cfg = load_config(CONFIG, opts)
    cfg.OUTPUT_DIR = str(tmp_path)
    register_datasets(cfg)
    return cfg


@pytest.fixture
def dataset(cfg):
    metadata = MetadataCatalog.get("shapes_val")
    records = DatasetCatalog.get("shapes_val")
    return EvaluationDataset(records, class_names=metadata.vocabulary, is_thing=metadata.is_thing)


@pytest.fixture
def perfect(cfg, dataset, monkeypatch):
    """A model whose k-th tie-breaker finds the k-th thing of a prompt; the second stage erodes masks by a pixel."""
    model = OpenWorldSAM(cfg).eval()

    def decode_things(asked, example):
        classes = [c for c in example.inputs["class_ids"] if dataset.is_thing[c]]
        logits = torch.full((len(classes), asked.adapter.num_queries, 64, 64), -5.0)
        scores = torch.zeros(logits.shape[:2])
        for p, class_id in enumerate(classes):
            for k, mask in enumerate(true_masks(example, class_id)[: asked.adapter.num_queries]):
                logits[p, k, torch.from_numpy(mask)] = 5.0
                scores[p, k] = 0.9 - k / 10
        labels = torch.tensor(classes).repeat_interleave(asked.adapter.num_queries)
        return None, Queries(logits.flatten(0, 1), scores.flatten(), labels)

    def refine(features, logits):
        return -max_pool2d(-logits[:, None], 3, 1, 1)[:, 0], torch.full((len(logits),), 0.6)

    for module in ("observations", "figures"):
        monkeypatch.setattr(f"openworldsam.ablation.{module}.decode_things", decode_things)
    monkeypatch.setattr(model.mask_decoder, "refine", refine)
    return model


def true_masks(example, class_id):
    return [example.truth.segment_map == s["id"] for s in example.truth.segments if s["category_id"] == class_id]


def test_observations_of_a_perfect_model(perfect, dataset):
    seen = observe(perfect, dataset, 4)
    expected = []
    for example in (dataset[index] for index in range(4)):
        for class_id in np.flatnonzero(dataset.is_thing):
            for k, mask in enumerate(true_masks(example, class_id)[:3]):
                ys, xs = np.nonzero(mask)
                expected.append((k, (xs.mean() + 0.5) / 64, (ys.mean() + 0.5) / 64))
    got = [(k, *centre) for k, centres in enumerate(seen.centres) for centre in centres]
    np.testing.assert_allclose(sorted(got), sorted(expected), atol=1e-5)
    assert len(seen.found) == len(expected)
    assert all(stages.iou == 1 and 0 < stages.new_iou < 1 for stages in seen.found)
    assert {(round(stages.score, 3), round(stages.new_score, 3)) for stages in seen.found} >= {(0.9, 0.6), (0.8, 0.6)}
    counts = [(i, c, len(true_masks(dataset[i], c))) for i in range(4) for c in np.flatnonzero(dataset.is_thing)]
    several = {Equal(i, c, count, min(count, 3)) for i, c, count in counts if count > 1}
    assert several and {*seen.equal} == several
    assert 0 < len(seen.closeups) <= 4
    for closeup in seen.closeups:
        assert closeup.truth.any() and np.array_equal(closeup.before > 0, closeup.truth)
        assert closeup.image.shape[:2] == closeup.truth.shape == closeup.after.shape


def test_specialisation():
    assert specialisation([[(0.1, 0.1)] * 3, [(0.9, 0.9)] * 3]) == pytest.approx(1)
    assert specialisation([[(0.1, 0.1), (0.9, 0.9)]] * 2) == pytest.approx(0)
    assert specialisation([[], []]) is None and specialisation([[(0.5, 0.5)], []]) is None


def test_pictures_and_captions(perfect, cfg, tmp_path):
    """Three tie-breakers find all things where there are at most three, which of the crowds not all have."""
    single = SimpleNamespace(adapter=SimpleNamespace(num_queries=1), inference=perfect.inference)
    benchmarks, folder = ("shapes_val", "shapes_crowd_val"), tmp_path / "images"
    files, _, words = zip(*draw_figures(perfect, single, cfg, benchmarks, folder), strict=True)
    assert [Path(file) for file in files] == [
        folder / f"{n}.png" for n in ("equal_shapes", "tie_breakers", "two_stage")
    ]
    assert all(Image.open(file).size > (300, 200) for file in files)
    equal, tie_breakers, two_stage = words
    single = "one query (E1 of the runs): 1 distinct confident masks, 1 of the things found"
    several = "3 tie-breakers: 3 distinct confident masks, 3 of the things found"
    counts = [int(word) for word in re.findall(r": (\d+) of the class", equal)]
    assert equal.count(f"; {single}; {several}.") == 2 and counts[0] <= 3 < counts[1]
    assert "with a score of at least 0.3 on the first 3 images of shapes_crowd_val (weights: E5)" in tie_breakers
    assert "mean IoU is 100.0 before and" in two_stage and "rises for 0 %" in two_stage


def test_the_scenes_that_are_drawn(perfect, cfg, tmp_path, monkeypatch):
    """The most found of those without a miss, the most missed; the first of equal ones."""
    drawn = []
    scenes = [(0, 1, 2, 2), (1, 1, 3, 3), (2, 1, 3, 3), (3, 1, 9, 8), (4, 1, 5, 2), (5, 1, 4, 1)]
    seen = replace(observe(perfect, [], 0), equal=[Equal(*scene) for scene in scenes])
    monkeypatch.setattr(figures, "observe", lambda *_: seen)
    monkeypatch.setattr(figures, "_scene", lambda axes, scene, *_: drawn.append(scene.image) or f"image {scene.image}")
    draw_figures(perfect, None, cfg, ("shapes_val",), tmp_path / "images")
    assert drawn == [1, 4]
    seen.equal.clear()
    with pytest.raises(ValueError, match=r"none of the first 3 images of shapes_val \(.*\) has several"):
        draw_figures(perfect, None, cfg, ("shapes_val",), tmp_path / "images")


def test_a_model_that_finds_nothing_is_drawn(perfect, cfg, tmp_path):
    perfect.inference = replace(perfect.inference, score_threshold=0.95)
    equal, tie_breakers = draw_figures(perfect, None, cfg, ("shapes_val",), tmp_path / "images")
    assert "No image has several equal things that are all found." in equal.caption
    assert "0 of the things found" in equal.caption and "one query" not in equal.caption
    assert tie_breakers.caption.endswith("0 of 3 tie-breakers have any.")
