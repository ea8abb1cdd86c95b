"""Predictions of other methods, in standard formats, drawn beside those of a run."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from panopticapi.utils import id2rgb
from PIL import Image
from test_report_page import write

from openworldsam import cli
from openworldsam.data.records.rle import encode_mask
from openworldsam.evaluation.answer import Answer
from openworldsam.evaluation.saved import SavedPredictions
from openworldsam.report.command import build_report
from openworldsam.report.evaluations import read_evaluations
from openworldsam.report.others import OtherMethod
from openworldsam.report.pictures import picture_rows

main = cli.command("report")

NAMES, IDS = ["cat", "grass"], [17, 193]
LEFT = np.repeat([[True, True, False, False]], 4, axis=0)
TRUE = {"id": 1, "category_id": 0, "iscrowd": 0, "area": 8}, {"id": 2, "category_id": 1, "iscrowd": 0, "area": 8}
ANSWER = Answer(
    (np.where(LEFT, 1, 2), TRUE),
    [{"category_id": 0, "segmentation": encode_mask(LEFT), "score": 0.9, "area": 8, "bbox": [0, 0, 2, 4]}],
    np.where(LEFT, 0, 1),
)


@pytest.fixture
def run(tmp_path):
    """A run on two images, whose predictions are the ground truth; and one on an expression."""
    metrics = {"panoptic": ("PQ",), "instance": ("AP",), "semantic": ("mIoU",)}
    tasks = {task: {**dict.fromkeys(names, 1.0), "per_class": {}} for task, names in metrics.items()}
    counts = {"protocol": "oracle", "images": 2, "skipped": {}, "remarks": {}}
    expressions = {"referring": {"cIoU": 1.0, "per_class": {}}, **counts}
    folder = write(tmp_path / "run", {"zoo_val": {**tasks, **counts}, "tell_val": expressions})
    plain = {"height": 4, "width": 4, "image": torch.full((3, 4, 4), 90, dtype=torch.uint8)}
    saved = SavedPredictions(folder / "predictions/zoo_val", NAMES, [True, False], IDS)
    for image_id in (3, 5):
        saved.save({**plain, "image_id": image_id, "file_name": f"a{image_id}.jpg", "prompts": NAMES}, ANSWER, ANSWER)
    saved.finish([3, 5])
    referred = Answer(referring=[LEFT, ~LEFT])
    saved = SavedPredictions(folder / "predictions/tell_val", [], [])
    saved.save({**plain, "image_id": 3, "file_name": "a3.jpg", "prompts": ["left", "right"]}, referred, referred)
    saved.finish([3])
    (found,) = read_evaluations([folder])
    return found


@pytest.fixture
def method(run, tmp_path):
    """Another method: for image 3 what the run has saved, under the names that datasets and tools give."""
    source, target = run.folder / "predictions/zoo_val/prediction", tmp_path / "other/zoo_val"
    shutil.copytree(source, target)
    (target / "semantic/000000000003.png").rename(target / "semantic/a3.png")
    (target / "semantic/000000000005.png").rename(target / "semantic/a5.png")
    results = json.loads((target / "instances.json").read_text())
    low = [{**result, "score": 0.4, "segmentation": encode_mask(~LEFT)} for result in results]
    (target / "instances.json").write_text(json.dumps([results[0], *low]))
    (tmp_path / "other/tell_val").mkdir()
    expressions = json.loads((run.folder / "predictions/tell_val/prediction/referring.json").read_text())
    (tmp_path / "other/tell_val/referring.json").write_text(json.dumps(expressions["annotations"]))
    return OtherMethod("X-Decoder", tmp_path / "other")


@pytest.mark.parametrize("task", Answer._fields)
def test_the_same_predictions_give_the_same_pictures(run, method, task):
    benchmark = "tell_val" if task == "referring" else "zoo_val"
    row, *others = picture_rows([run], benchmark, task, 2, [method])
    assert list(row.pictures) == ["image", "ground truth", "run", "X-Decoder"]
    assert np.array_equal(row.pictures["X-Decoder"], row.pictures["run"])
    assert len(others) == (task != "referring")
    if task == "instance":  # of the second image nothing reaches the score
        assert np.array_equal(others[0].pictures["X-Decoder"], others[0].pictures["image"])


def test_the_files_of_detectron2s_evaluators_are_read(run, method):
    folder = method.folder / "zoo_val"
    shutil.move(folder / "panoptic.json", folder / "predictions.json")
    for png in (folder / "panoptic").iterdir():
        shutil.move(png, folder / png.name)
    (folder / "panoptic").rmdir()
    shutil.move(folder / "instances.json", folder / "coco_instances_results.json")
    shutil.rmtree(folder / "semantic")
    masks = zip(("a5", "a3", "a3"), IDS[:1] + IDS, (~LEFT, LEFT, ~LEFT), strict=True)
    results = [
        {"file_name": f"elsewhere/{n}.jpg", "category_id": c, "segmentation": encode_mask(m)} for n, c, m in masks
    ]
    (folder / "sem_seg_predictions.json").write_text(json.dumps(results))
    for task in ("panoptic", "instance", "semantic"):
        row = picture_rows([run], "zoo_val", task, 1, [method])[0]
        assert np.array_equal(row.pictures["X-Decoder"], row.pictures["run"])


def test_the_classes_of_a_semantic_benchmark_are_their_labels(run, method):
    """It has no json that lists categories; and a label that is no class is none."""
    shutil.rmtree(run.folder / "predictions/zoo_val/truth")
    shutil.copytree(
        run.folder / "predictions/zoo_val/prediction/semantic", run.folder / "predictions/zoo_val/truth/semantic"
    )
    for image_id in (3, 5):
        marker = run.folder / f"predictions/zoo_val/images/{image_id:012d}.json"
        edit(
            marker,
            lambda c: [c[kind].pop(task) for kind in ("prediction", "truth") for task in ("panoptic", "instance")],
        )
    folder, right = method.folder / "zoo_val", np.where(LEFT, 255, 1).astype(np.uint8)
    for file in [*folder.glob("*.json"), *folder.glob("panoptic/*")]:
        file.unlink()
    Image.fromarray(right).save(folder / "semantic/a3.png")
    as_image = picture_rows([run], "zoo_val", "semantic", 1, [method])[0].pictures["X-Decoder"]
    shutil.rmtree(folder / "semantic")
    results = [{"file_name": "a3.jpg", "category_id": 1, "segmentation": encode_mask(~LEFT)}]
    (folder / "sem_seg_predictions.json").write_text(json.dumps(results))
    assert np.array_equal(picture_rows([run], "zoo_val", "semantic", 1, [method])[0].pictures["X-Decoder"], as_image)


def test_a_method_has_no_column_for_a_task_or_benchmark_without_files(run, method):
    shutil.rmtree(method.folder / "zoo_val/semantic")
    assert "X-Decoder" not in picture_rows([run], "zoo_val", "semantic", 1, [method])[0].pictures
    shutil.rmtree(method.folder / "zoo_val")
    assert "X-Decoder" not in picture_rows([run], "zoo_val", "panoptic", 1, [method])[0].pictures


@pytest.mark.parametrize("name", ["more/a3.TIF", "a3.PNG"])
def test_label_images_may_lie_in_folders_and_have_any_suffix(run, method, name):
    file = method.folder / "zoo_val/semantic" / name
    file.parent.mkdir(exist_ok=True)
    (method.folder / "zoo_val/semantic/a3.png").unlink()
    Image.fromarray(np.where(LEFT, 0, 1).astype(np.uint8)).save(file)
    row = picture_rows([run], "zoo_val", "semantic", 1, [method])[0]
    assert np.array_equal(row.pictures["X-Decoder"], row.pictures["run"])


@pytest.mark.parametrize("form", ["folder", "list"])
def test_where_names_of_images_repeat_their_folders_decide(run, method, form):
    for marker in (run.folder / "predictions/zoo_val/images").glob("*.json"):
        edit(marker, lambda c: c.update(file_name=f"frames/scene{c['image_id']}/color/0.jpg"))
    folder, masks = method.folder / "zoo_val/semantic", {4: ~LEFT, 3: LEFT, 5: ~LEFT}
    shutil.rmtree(folder)
    if form == "list":
        names = {i: f"/data/scene{i}/color/0.jpg" for i in masks}
        found = [{"file_name": names[i], "category_id": 17, "segmentation": encode_mask(m)} for i, m in masks.items()]
        (folder.parent / "sem_seg_predictions.json").write_text(json.dumps(found))
    else:
        for i, mask in masks.items():
            (folder / f"scene{i}/color").mkdir(parents=True)
            Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)).save(folder / f"scene{i}/color/0.png")
    saved = run.saved("zoo_val")
    for i in (3, 5):
        answer = method.answer("zoo_val", saved, i, saved.image(i))
        assert np.array_equal(answer.semantic == 0, masks[i])


def test_the_page_shows_other_methods(run, method, tmp_path, exit_status, capsys):
    assert build_report([run], others=[method]).count("<figcaption>X-Decoder</figcaption>") == 2 * 3 + 1
    options = ["--runs", run.folder, "--output", tmp_path / "page.html", "--others"]
    assert exit_status(main, *options, f"X-Decoder={method.folder}") == 0
    assert "<figcaption>X-Decoder</figcaption>" in (tmp_path / "page.html").read_text()
    assert exit_status(main, *options, "nowhere") == 2 and "is not NAME=DIR" in capsys.readouterr().err


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first_segment(**values):
    return lambda f: edit(f / "panoptic.json", lambda c: c["annotations"][0]["segments_info"][0].update(values))


def results(change):
    return lambda f: edit(f / "instances.json", change)


def in_two_folders(folder):
    for name in ("more", "others"):
        (folder / "semantic" / name).mkdir()
        shutil.copy(folder / "semantic/a3.png", folder / "semantic" / name)
    (folder / "semantic/a3.png").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_segment(category_id=4), "panoptic.json: the benchmark has no category 4"),
        (first_segment(id="1"), "panoptic.json: the id of a segment is '1'"),
        (first_segment(score="<b>"), "zoo_val: score must be a finite number"),
        (lambda f: Image.fromarray(id2rgb(np.ones((2, 4)))).save(f / "panoptic/000000000003.png"), "is (2, 4), its im"),
        (lambda f: edit(f / "panoptic.json", lambda c: c.pop("annotations")), "no COCO panoptic json: it has no 'ann"),
        (lambda f: edit(f / "panoptic.json", lambda c: c["annotations"].pop(0)), "it has no prediction of the image 3"),
        (lambda f: (f / "instances.json").write_text("["), "instances.json is not json"),
        (lambda f: (f / "instances.json").write_text("[" * 10**5), "instances.json is not json"),
        (lambda f: ((f / "instances.json").unlink(), os.mkfifo(f / "instances.json")), "instances.json is a pipe"),
        (results(lambda c: c[0].pop("score")), "list of COCO results: it has no 'score'"),
        (results(lambda c: c[0].update(score=float("nan"))), "score must be a finite number"),
        (results(lambda c: [each.update(image_id="3") for each in c]), "ids such as '3', where the image has the id 3"),
        (lambda f: (f / "semantic/a3.png").unlink(), "semantic has no label image named as a3.jpg"),
        (in_two_folders, "may both be the prediction of a3.jpg"),
    ],
)
def test_damaged_predictions_are_named(run, method, change, message):
    change(method.folder / "zoo_val")
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        build_report([run], others=[method])
    assert message in str(raised.value)
