"""Panoptic and instance jsons as the publishers' scripts write them: file stems as image ids, sizes such as 16.0."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb
from PIL import Image
from test_benchmark import Oracle
from test_saved import IDENTITY, scored

from openworldsam import cli
from openworldsam.data.datasets import register_datasets
from openworldsam.data.datasets.benchmarks import EXPECTED_IMAGES, read_classes
from openworldsam.evaluation.answer import Answer
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.saved import SavedPredictions, Saving
from openworldsam.evaluation.score import score_instance, score_panoptic

run_check = cli.command("check")

ADE, SCANNET, CITYSCAPES = "ADEChallengeData2016", "scannet", "cityscapes"
# for each publisher: classes; name in our catalog; the place of the json; image id; the image's file and its name in
# the json; the PNG; ids of a piece of stuff and of a thing
SCRIPTS = {
    "ade20k": (
        *("ade20k_150", "ade20k_150_panoptic_val", f"{ADE}/ade20k_panoptic_val.json", "ADE_val_00000001"),
        *(f"{ADE}/images/validation", "ADE_val_00000001.jpg", "ADE_val_00000001.jpg", "ADE_val_00000001.png", 0, 12),
    ),
    "scannet": (
        *("scannet_20", "scannet_20_panoptic_val", f"{SCANNET}/scannet_panoptic_val.json", "scene0011_00__000100"),
        *(f"{SCANNET}/scannet_frames_25k", "scene0011_00/color/000100.jpg", "scene0011_00/color/000100.png"),
        *("scene0011_00__000100.png", 1, 5),
    ),
    "cityscapes": (
        *("cityscapes_19", "cityscapes_19_panoptic_val", f"{CITYSCAPES}/panoptic_val.json", "ulm_000000_000019"),
        *(f"{CITYSCAPES}/leftImg8bit/val", "ulm/ulm_000000_000019_leftImg8bit.png"),
        *("ulm_000000_000019_gtFine_leftImg8bit.png", "ulm_000000_000019_gtFine_panoptic.png", 7, 26),
    ),
}


@pytest.fixture(params=SCRIPTS)
def published(request, tmp_path, monkeypatch):
    """The files of one publisher: name in the catalog, json, folder of the images, path and id of the one image."""
    classes, name, json_name, image_id, images, file, listed, png, stuff, thing = SCRIPTS[request.param]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", ".")
    monkeypatch.setitem(EXPECTED_IMAGES, name, 1)
    ids = np.full((16, 20), 1000 * stuff + 7)
    ids[4:8, 5:10], ids[0] = 26_001, 0
    path = tmp_path / images / file
    path.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(path)
    truth = (tmp_path / json_name).with_suffix("")
    truth.mkdir(parents=True)
    Image.fromarray(id2rgb(ids)).save(truth / png)
    # the thing lies over stuff, as in ADE20K: the area of that was taken before
    areas = {1000 * stuff + 7: (stuff, 300.0), 26_001: (thing, 20.0)}
    segments = [{"id": i, "category_id": c, "area": a, "iscrowd": 0} for i, (c, a) in areas.items()]
    content = {
        "images": [{"id": image_id, "width": 20.0, "height": 16.0, "file_name": listed}],
        "annotations": [{"image_id": image_id, "file_name": png, "segments_info": segments}],
        "categories": [{"id": c.id, "name": c.name, "isthing": c.is_thing} for c in read_classes(classes)],
    }
    (tmp_path / json_name).write_text(json.dumps(content))
    return name, tmp_path / json_name, tmp_path / images, path, image_id


def test_a_registered_benchmark(published, exit_status, capsys):
    name, _, _, path, image_id = published
    assert exit_status(run_check, name, "--read", "--workers", "1") == 0, capsys.readouterr().out
    (record,) = DatasetCatalog.get(name)
    assert (Path(record["file_name"]).resolve(), record["image_id"]) == (path, image_id)
    assert (record["height"], record["width"]) == (16, 20) and isinstance(record["width"], int)
    assert [s["area"] for s in record.read_panoptic()[1]] == [300, 20]


class Unasked(torch.nn.Module):
    """A model for an evaluation that is done."""

    def forward(self, batch, **_):
        assert not batch
        return []


def test_a_custom_dataset_is_evaluated_saved_and_resumed(published, tmp_path, tiny_cfg, build, exit_status):
    _, json_file, images, _, image_id = published
    files = {"panoptic": str(json_file), "panoptic_images": str(json_file.with_suffix(""))}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "images": str(images), **files}))
    try:
        assert exit_status(run_check, "--own", str(tmp_path / "mine.yaml"), "--read", "--workers", "1") == 0
        tiny_cfg.merge_from_list(["DATASETS.OWN", [str(tmp_path / "mine.yaml")], "DATASETS.TEST", ("mine",)])
        tiny_cfg.DATALOADER.NUM_WORKERS = 0
        register_datasets(tiny_cfg)
        model, saving = build("MODEL.INFERENCE.SCORE_THRESHOLD", 0.0), Saving(tmp_path / "saved", IDENTITY)
        content = evaluate(tiny_cfg, model, saving)["mine"]
        assert content["images"] == 1 and not content["skipped"]
        found = scored(saving.folder / "mine")
        for task in ("panoptic", "instance", "semantic"):
            assert not found[task].pop("without_prediction") and found[task] == content[task]
        saved = SavedPredictions.written(saving.folder / "mine")
        assert saved.image_ids() == [image_id] and saved.image(image_id).prompts
        assert evaluate(tiny_cfg, Unasked(), saving)["mine"] == content

        found = evaluate(tiny_cfg, Oracle("mine"), Saving(tmp_path / "perfect", IDENTITY))["mine"]["panoptic"]
        folder = tmp_path / "perfect/mine"
        for truth in (json_file, folder / "truth/panoptic.json"):
            expected = pq_compute(str(truth), str(folder / "prediction/panoptic.json"))["All"]
            assert [found[name] for name in ("PQ", "SQ", "RQ")] == [
                pytest.approx(100 * expected[name]) for name in ("pq", "sq", "rq")
            ]
        assert found["PQ_st"] == pytest.approx(100 * 280 / 300)
    finally:
        DatasetCatalog.remove("mine")
        MetadataCatalog.pop("mine", None)


def test_pq_of_a_prediction_equals_panopticapis(published, tmp_path):
    """A perfect map has less than 100, as the union counts what the json says of the stuff."""
    _, json_file, *_ = published
    predicted = tmp_path / "predicted.json"
    shutil.copy(json_file, predicted)
    shutil.copytree(json_file.with_suffix(""), tmp_path / "predicted")
    report = score_panoptic(json_file, json_file.with_suffix(""), predicted, tmp_path / "predicted")
    expected = pq_compute(str(json_file), str(predicted))
    for suffix, kind in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for metric in ("PQ", "SQ", "RQ"):
            assert report.scores.overall[metric + suffix] == pytest.approx(100 * expected[kind][metric.lower()])
    assert report.scores.overall["PQ_st"] == pytest.approx(100 * 280 / 300)


def test_instances(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    truth = tmp_path / ADE / "ade20k_instance_val.json"
    (truth.parent / "images/validation").mkdir(parents=True)
    Image.new("RGB", (20, 16)).save(truth.parent / "images/validation/2.jpg")
    square = [[5, 4, 10, 4, 10, 8, 5, 8]]
    objects = {"category_id": 12, "segmentation": square, "area": 20, "bbox": [5, 4, 5, 4], "iscrowd": 0}
    content = {
        "images": [{"id": f"ADE_val_{i}", "width": 20.0, "height": 16.0, "file_name": f"{i}.jpg"} for i in "12"],
        "annotations": [{"id": i, "image_id": f"ADE_val_{i}", **objects} for i in (1, 2)],
        "categories": [{"id": 12, "name": "person"}],
    }
    truth.write_text(json.dumps(content))
    records = DatasetCatalog.get("ade20k_100_instance_val")
    assert [(r["image_id"], r["width"], len(r["instances"])) for r in records] == [
        ("ADE_val_1", 20, 1),
        ("ADE_val_2", 20, 1),
    ]
    (tmp_path / "found.json").write_text(json.dumps([{"image_id": "ADE_val_2", "score": 0.5, **objects}]))
    report = score_instance(truth, tmp_path / "found.json")
    assert report.scores.overall["AR100"] == 50 and report.without_prediction == ["ADE_val_1"]


@pytest.mark.parametrize("image_id", ["a/b", "..", "12", "Ä" * 90, "a b", "x" * 300, ""])
def test_any_text_may_be_an_image_id(tmp_path, image_id):
    saved = SavedPredictions(tmp_path, ["a"], [False])
    inputs = {"image": torch.zeros(3, 4, 6, dtype=torch.uint8), "image_id": image_id, "file_name": "none", "height": 4}
    inputs |= {"width": 6, "prompts": ["a"]}
    answer = Answer(semantic=np.zeros((4, 6), int))
    saved.save(inputs, answer, answer)
    saved.finish([image_id])
    assert SavedPredictions.written(tmp_path).image_ids() == [image_id]
    assert (saved.load(inputs).semantic == 0).all()
