"""Saved predictions: same scores as the evaluation, reused by a second run, refused by another model's."""

import json

import numpy as np
import pytest
import torch
from test_benchmark import Oracle, cfg, coco_sample, expressions_on_disk, pictures_on_disk  # noqa: F401 (fixtures)

from openworldsam.data.datasets.coco import CATEGORIES
from openworldsam.data.records.coco_json import read_categories
from openworldsam.evaluation.answer import NO_CLASS, Answer
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.saved import SavedPredictions, Saving
from openworldsam.evaluation.score import (
    score_concept,
    score_instance,
    score_panoptic,
    score_referring,
    score_semantic,
)

IDENTITY = {"weights": {"adapter": "1"}}
NAMES = ["shapes_val", "shapes_absent_val", "shapes_refer_val", "coco_sample"]


@pytest.fixture
def saving(tmp_path):
    return Saving(tmp_path / "predictions", IDENTITY)


@pytest.fixture
def model(build):
    """A model that finds something: no threshold, so that all tasks have a share of right and wrong."""
    return build("MODEL.INFERENCE.SCORE_THRESHOLD", 0.0)


def scored(folder, ignore=255):
    """Scores that `openworldsam score` gives to a benchmark's files, by task."""
    truth, predicted = folder / "truth", folder / "prediction"
    reports = {}
    if (truth / "panoptic.json").exists():
        pairs = [(kind / "panoptic.json", kind / "panoptic") for kind in (truth, predicted)]
        reports["panoptic"] = score_panoptic(*pairs[0], *pairs[1])
    if (truth / "instances.json").exists():
        files = truth / "instances.json", predicted / "instances.json"
        reports["instance"], reports["boxes"] = score_instance(*files), score_instance(*files, "bbox")
        reports["concept"] = score_concept(files[:1], files[1])
    if (truth / "semantic").exists():
        folders = truth / "semantic", predicted / "semantic"
        reports["semantic"] = score_semantic(*folders, folder / "classes.txt", ignore)
    if (truth / "referring.json").exists():
        reports["referring"] = score_referring(truth / "referring.json", predicted / "referring.json")
    contents = {task: report.content() for task, report in reports.items()}
    for name, value in contents.pop("boxes", {}).items():
        if name not in ("per_class", "without_prediction"):
            contents["instance"][f"{name}_box"] = value
    return contents


@pytest.mark.parametrize(
    ("name", "protocol"), [*((name, "oracle") for name in NAMES), ("shapes_val", "global"), ("coco_sample", "global")]
)
def test_scores_of_the_files_equal_the_evaluation(
    cfg,  # noqa: F811
    model,
    saving,
    name,
    protocol,
    coco_sample,  # noqa: F811
):
    few = ["TEST.MAX_IMAGES", 2] if protocol == "global" else []  # the whole vocabulary takes long
    cfg.merge_from_list(["DATASETS.TEST", [name], "TEST.SENTENCES", "all", "TEST.PROTOCOL", protocol, *few])
    content = evaluate(cfg, model, saving)[name]
    found = scored(saving.folder / name)
    if protocol == "oracle" and name != "shapes_absent_val":
        found.pop("concept", None)  # not scored where no phrase is absent
    assert found.keys() == content.keys() & {"panoptic", "instance", "concept", "semantic", "referring"}
    for task, metrics in found.items():
        assert not metrics.pop("without_prediction")
        assert metrics == content[task], task
    assert content == evaluate(cfg, model)[name]


def test_the_jsons_have_the_ids_of_the_datasets_own_files(cfg, saving, coco_sample, shared):  # noqa: F811
    cfg.DATASETS.TEST = [coco_sample]
    content = evaluate(cfg, Oracle(coco_sample), saving)[coco_sample]
    own, folder = shared / "data/coco_panoptic_sample", saving.folder / coco_sample / "prediction"
    known = {category.id: category.name for category in read_categories(own / "panoptic.json")}
    written = {category.id: category.name for category in read_categories(folder / "panoptic.json")}
    assert written.keys() == known.keys()
    listed = json.loads((folder.parent / "truth/instances.json").read_text())["categories"]
    assert [c["id"] for c in listed] == [c.id for c in CATEGORIES if c.is_thing]
    found = json.loads((folder / "instances.json").read_text())
    assert found and {instance["category_id"] for instance in found} <= {c["id"] for c in listed}
    report = score_panoptic(own / "panoptic.json", own / "panoptic", folder / "panoptic.json", folder / "panoptic")
    assert report.scores.overall["PQ"] == content["panoptic"]["PQ"] == pytest.approx(100)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_evaluation_resumes(cfg, model, saving, name, coco_sample):  # noqa: F811
    cfg.merge_from_list(["DATASETS.TEST", [name], "TEST.IMS_PER_BATCH", 2])
    whole = evaluate(cfg, model, Saving(saving.folder / "whole", IDENTITY))
    asked = []

    class Interrupted(torch.nn.Module):
        def forward(self, batch, tasks, **options):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.extend(x["image_id"] for x in batch)
            return model(batch, tasks, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluate(cfg, Interrupted(), saving)
    done = list(asked)
    asked.clear()

    class Counting(Interrupted):
        def forward(self, batch, tasks, **options):
            asked.extend(x["image_id"] for x in batch)
            return model(batch, tasks, **options)

    assert evaluate(cfg, Counting(), saving) == whole
    assert len(done) == 2 and asked and not set(asked) & set(done)
    asked.clear()
    assert evaluate(cfg, Counting(), saving) == whole and not asked


def test_expressions_of_any_number_of_targets_are_scored_from_files(cfg, model, saving, expressions_on_disk):  # noqa: F811
    cfg.merge_from_list(["DATASETS.TEST", [expressions_on_disk]])
    whole = evaluate(cfg, model, saving)[expressions_on_disk]["generalized_referring"]
    folder = saving.folder / expressions_on_disk
    files = [folder / kind / "referring.json" for kind in ("truth", "prediction")]
    found = score_referring(*files, generalized=True).content()
    assert not found.pop("without_prediction") and found == whole and 0 < whole["gIoU"] < 100
    assert evaluate(cfg, model, saving)[expressions_on_disk]["generalized_referring"] == whole


def test_unreadable_images_and_images_without_prompts(cfg, model, saving, pictures_on_disk):  # noqa: F811
    cfg.DATASETS.TEST = [pictures_on_disk]
    whole = evaluate(cfg, model, saving)[pictures_on_disk]
    found = scored(saving.folder / pictures_on_disk)
    assert whole["images"] == 3 and len(whole["skipped"]) == 1
    tasks = whole.keys() & found.keys()
    assert {task: found[task]["per_class"] for task in tasks} == {task: whole[task]["per_class"] for task in tasks}
    assert evaluate(cfg, model, saving)[pictures_on_disk] == whole


def test_predictions_of_another_run_are_refused(cfg, model, saving):  # noqa: F811
    cfg.merge_from_list(["DATASETS.TEST", ["shapes_val"], "TEST.MAX_IMAGES", 1])
    evaluate(cfg, model, saving)
    with pytest.raises(ValueError, match="made with other weights; use another --output"):
        evaluate(cfg, model, saving._replace(identity={"weights": {"adapter": "2"}}))
    cfg.TEST.PROTOCOL = "global"
    with pytest.raises(ValueError, match="it has other prompts"):
        evaluate(cfg, model, saving)


def test_another_image_of_the_same_id_is_refused(cfg, model, saving):  # noqa: F811
    cfg.merge_from_list(["DATASETS.TEST", ["shapes_val"], "TEST.MAX_IMAGES", 1, "TEST.PROTOCOL", "global"])
    evaluate(cfg, model, saving)
    (file,) = (saving.folder / "shapes_val/images").glob("*.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "picture": content["picture"] ^ 1}))
    with pytest.raises(ValueError, match=r"\.json cannot be reused: its image has changed; remove it"):
        evaluate(cfg, model, saving)
    with pytest.raises(ValueError, match="has changed since it was evaluated"):
        SavedPredictions.written(saving.folder / "shapes_val").image(content["image_id"])


def test_a_second_run_saves_the_ground_truth_anew(tmp_path):
    saved = SavedPredictions(tmp_path, ["sand", "fish"], [False] * 2)
    inputs = {"image_id": 7, "file_name": "a.jpg", "height": 1, "width": 2, "prompts": ["sand", "fish"]}
    inputs["image"] = torch.zeros(3, 1, 2, dtype=torch.uint8)
    before, after = (Answer(semantic=np.array([labels])) for labels in ([0, 0], [0, 1]))
    saved.save(inputs, before, before)
    loaded = saved.load(inputs)
    assert loaded is not None
    saved.save(inputs, loaded, after, loaded=True)
    assert [answer.semantic.tolist() for answer in saved.answers(7)] == [[[0, 0]], [[0, 1]]]


@pytest.mark.parametrize("damage", ["json", "png"])
def test_a_damaged_file_is_named(cfg, model, saving, damage):  # noqa: F811
    cfg.merge_from_list(["DATASETS.TEST", ["shapes_val"], "TEST.MAX_IMAGES", 1])
    evaluate(cfg, model, saving)
    folder = saving.folder / "shapes_val"
    (file,) = (folder / "images").glob("*.json") if damage == "json" else (folder / "prediction/panoptic").glob("*.png")
    file.write_bytes(b"{")
    with pytest.raises(ValueError, match=r"images/\d+\.json cannot be reused: .*; remove it"):
        evaluate(cfg, model, saving)


def test_large_vocabularies_take_16_bits(tmp_path):
    saved = SavedPredictions(tmp_path, [f"class {c}" for c in range(847)], [False] * 847)
    labels = np.array([[NO_CLASS, 0, 255, 846]])
    inputs = {"image_id": 7, "file_name": "a.jpg", "height": 1, "width": 4, "prompts": ["class 0"]}
    inputs["image"] = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 4)
    saved.save(inputs, Answer(semantic=labels), Answer(semantic=labels))
    saved.finish([7, 8])
    loaded = saved.load(inputs)
    assert loaded is not None and np.array_equal(loaded.semantic, labels) and loaded.panoptic is None
    assert scored(tmp_path, 65_535)["semantic"]["pACC"] == 100
    assert json.loads((tmp_path / "images/000000000007.json").read_text())["prediction"] == {"semantic": True}
    assert saved.load({**inputs, "image_id": 8}) is None
    read = SavedPredictions.written(tmp_path)
    assert read.image_ids() == [7] and len(read.class_names) == 847
    image = read.image(7)
    assert image.pixels[0, 1].tolist() == [1, 5, 9] and (image.file_name, image.prompts) == ("a.jpg", ["class 0"])
    assert all(np.array_equal(answer.semantic, labels) for answer in read.answers(7))
    with pytest.raises(FileNotFoundError, match="has no predictions"):
        SavedPredictions.written(tmp_path / "nowhere")
