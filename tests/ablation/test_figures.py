"""Fig. 3 and two-stage inference: measurements, pictures and captions."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch.nn.functional import max_pool2d

from openworldsam.ablation.figures import _equal_scene, draw_figures
from openworldsam.ablation.observations import observe, specialisation
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
    examples = [dataset[index] for index in range(20)]

    def decode_queries(asked, image, prompts):
        example = next(x for x in examples if torch.equal(x.inputs["image"], image))
        logits = torch.full((len(prompts), asked.adapter.num_queries, 64, 64), -5.0)
        scores = torch.zeros(logits.shape[:2])
        for p, prompt in enumerate(prompts):
            masks = true_masks(example, dataset.class_names.index(prompt))[: asked.adapter.num_queries]
            for k, mask in enumerate(masks):
                logits[p, k, torch.from_numpy(mask)] = 5.0
                scores[p, k] = 0.9 - k / 10
        labels = torch.arange(len(prompts)).repeat_interleave(asked.adapter.num_queries)
        return None, Queries(logits.flatten(0, 1), scores.flatten(), labels)

    def refine(features, logits):
        return -max_pool2d(-logits[:, None], 3, 1, 1)[:, 0], torch.full((len(logits),), 0.6)

    for module in ("observations", "figures"):
        monkeypatch.setattr(f"openworldsam.ablation.{module}.decode_queries", decode_queries)
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
    assert 0 < len(seen.closeups) <= 4
    for closeup in seen.closeups:
        assert closeup.truth.any() and np.array_equal(closeup.before > 0, closeup.truth)
        assert closeup.image.shape[:2] == closeup.truth.shape == closeup.after.shape


def test_specialisation():
    assert specialisation([[(0.1, 0.1)] * 3, [(0.9, 0.9)] * 3]) == pytest.approx(1)
    assert specialisation([[(0.1, 0.1), (0.9, 0.9)]] * 2) == pytest.approx(0)
    assert specialisation([[], []]) is None and specialisation([[(0.5, 0.5)], []]) is None


def test_pictures_and_captions(perfect, cfg, tmp_path):
    single = SimpleNamespace(adapter=SimpleNamespace(num_queries=1), inference=perfect.inference)
    draw_figures(perfect, single, cfg, "shapes_val", tmp_path / "images")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [figure["file"].rpartition("/")[2] for figure in figures] == [
        *("equal_shapes.png", "tie_breakers.png", "two_stage.png")
    ]
    assert all(Image.open(figure["file"]).size > (300, 200) for figure in figures)
    equal, tie_breakers, two_stage = (figure["words"] for figure in figures)
    assert "One query (E1): 1 distinct confident masks, 1 of the things found." in equal
    assert "3 tie-breakers (E5): 3 distinct confident masks, 3 of the things found." in equal
    assert "with a score of at least 0.3 on the first 3 images of shapes_val (weights: E5)" in tie_breakers
    assert "mean IoU is 100.0 before and" in two_stage and "rises for 0 %" in two_stage


def test_a_model_that_finds_nothing_is_drawn(perfect, cfg, tmp_path):
    perfect.inference = replace(perfect.inference, score_threshold=0.95)
    draw_figures(perfect, None, cfg, "shapes_val", tmp_path / "images")
    equal, tie_breakers = json.loads((tmp_path / "figures.json").read_text())
    assert "0 of the things found" in equal["words"] and "One query" not in equal["words"]
    assert tie_breakers["words"].endswith("0 of 3 tie-breakers have any.")


def test_the_drawn_image_has_three_things_of_one_class(dataset):
    example, class_id = _equal_scene(dataset)
    assert sum(s["category_id"] == class_id for s in example.truth.segments) >= 3 and dataset.is_thing[class_id]
    few = EvaluationDataset(dataset.records[:0], class_names=dataset.class_names, is_thing=dataset.is_thing)
    with pytest.raises(ValueError, match="no image has 3 things of one class"):
        _equal_scene(few)
