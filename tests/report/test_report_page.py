"""The HTML page about evaluations: its content, and errors for missing or damaged files."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openworldsam import cli
from openworldsam.data.records.rle import encode_mask
from openworldsam.evaluation.answer import NO_CLASS, Answer
from openworldsam.evaluation.saved import SavedPredictions
from openworldsam.report.charts import MOST_BARS, class_bars, overview_bars, sorted_classes
from openworldsam.report.command import build_report
from openworldsam.report.evaluations import (
    NOTHING,
    class_metrics,
    confusion,
    families,
    overview_scores,
    read_evaluations,
)
from openworldsam.report.page import picture_html
from openworldsam.report.pictures import PICTURE_SIDE, TRUTH, masks_of, picture_rows, spread_out
from openworldsam.visualization import LabelledMasks, draw_masks

main = cli.command("report")

NAMES = ["sky", "cat <small>", "road, route"]
TRUE = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 2, NO_CLASS]])
GUESSED = np.array([[0, 0, 0, 1], [0, 0, 2, NO_CLASS], [2, 2, 2, 2], [2, 2, 2, 0]])
IOU = {"sky": 50.0, "cat <small>": 0.0, "road, route": 87.5}


def save(folder, count=2):
    """Save the same prediction for `count` images."""
    saved = SavedPredictions(folder, NAMES, [False] * 3)
    for image_id in range(count):
        plain = {"image_id": image_id, "file_name": f"{image_id}.jpg", "height": 4, "width": 4, "prompts": NAMES}
        picture = torch.full((3, 4, 4), 40 * image_id, dtype=torch.uint8)
        saved.save({**plain, "image": picture}, Answer(semantic=GUESSED), Answer(semantic=TRUE))
    saved.finish(range(count))


def write(folder, benchmarks, **more):
    """Write a results.json."""
    content = {"preset": "paper", "protocol": "oracle", "sentences": "first"}
    content["paper"] = {"row": "OpenWorldSAM", "tuned_on": "", "reason": ""}
    weights = {"adapter": {"file": "a", "layout": "adapter", "fingerprint": "0123456789abcdef", "note": "tiny & new"}}
    content |= {"weights": weights, "command": "openworldsam evaluate <x>", "seconds": 1.5, "missing": {}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({**content, "benchmarks": benchmarks, **more}))
    return folder


def semantic(miou=45.8, **per_class):
    ious = {**IOU, **per_class}
    scores = {"mIoU": miou, "per_class": {name: {"IoU": iou, "ACC": iou} for name, iou in ious.items()}}
    counts = {"images": 2000, "dataset_images": 2000, "skipped": {}, "remarks": {}}
    return {"semantic": scores, "protocol": "oracle", **counts}


@pytest.fixture
def runs(tmp_path):
    """One run with saved predictions, and one without."""
    one = write(tmp_path / "one", {"ade20k_150_val": semantic()})
    save(one / "predictions/ade20k_150_val")
    skipped = {**semantic(33.3, sky=None), "skipped": {"b<.jpg": "it is damaged & cut"}, "images": 1999}
    other = write(tmp_path / "other", {"ade20k_150_val": skipped}, missing={"sun_rgbd_37_val": "not found"})
    return read_evaluations([one, other])


def test_confusion_by_hand(tmp_path):
    save(tmp_path)
    found = confusion(SavedPredictions.written(tmp_path), worst=2, others=1)
    # IoU: cat 0 of 5; sky 3 of 3 + 1 missed + 2 of cat (the pixel on void is ignored); road 7 of 8
    assert found.rows == ["cat <small>", "sky"]
    assert found.columns == ["cat <small>", "sky", "road, route"]
    assert found.percent.tolist() == [[0, 50, 25], [25, 75, 0]]
    assert confusion(SavedPredictions.written(tmp_path)).columns[-1] == NOTHING
    saved = SavedPredictions(tmp_path / "void", NAMES, [False] * 3)
    inputs = {"image_id": 1, "file_name": "a", "height": 1, "width": 1, "prompts": [], "image": torch.zeros(3, 1, 1)}
    void = np.array([[NO_CLASS]])
    saved.save({**inputs, "image": inputs["image"].byte()}, Answer(semantic=void), Answer(semantic=void))
    assert confusion(saved) is None


def test_families_share_their_classes():
    names = ["cityscapes_19_val", "ade20k_150_val", "cityscapes_19_panoptic_val", "ade20k_100_instance_val", "reef"]
    assert families(names) == {
        "cityscapes_19": ["cityscapes_19_val", "cityscapes_19_panoptic_val"],
        "ade20k_150": ["ade20k_150_val"],
        "ade20k_100": ["ade20k_100_instance_val"],
        "reef": ["reef"],
    }


def test_class_metrics_come_from_all_benchmarks_of_a_family(tmp_path):
    instance = {"AP": 12.0, "per_class": {"cat <small>": {"AP": 12.0}, "sky": {"AP": None}}}
    contents = {"a_1_val": semantic(), "a_1_panoptic_val": {**semantic(), "instance": instance}}
    del contents["a_1_panoptic_val"]["semantic"]
    (run,) = read_evaluations([write(tmp_path / "one", contents)])
    assert class_metrics(run, list(contents)) == {"IoU": IOU, "AP": {"cat <small>": 12.0}}
    assert class_metrics(run, ["b_val"]) == {}


def test_classes_are_sorted_by_the_first_metric_of_the_first_run():
    one = {"IoU": {"a": 10.0, "b": 90.0}, "AP": {"e": 50.0, "a": 99.0}}
    other = {"IoU": {"a": 95.0, "c": 20.0, "d": 30.0}}
    assert sorted_classes({"one": one, "other": other}) == ["b", "a", "d", "c", "e"]


def test_a_chart_of_many_classes_shows_the_best_and_the_worst():
    half = MOST_BARS // 2
    values = {f"class {i:03d}": 100.0 - i / 10 for i in range(200)}
    (axis,) = class_bars({"one": {"IoU": values}}).axes
    labels = [text.get_text() for text in axis.get_xticklabels()]
    assert labels == [*list(values)[:half], *list(values)[-half:]]
    heights = [bar.get_height() for bar in axis.patches]
    assert heights == [values[name] for name in labels]


def test_images_are_spread_out():
    assert spread_out(range(100, 110), 3) == [100, 103, 106]
    assert spread_out([4, 5], 3) == [4, 5] and spread_out([4, 5], 0) == spread_out([], 3) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 3}, "has the class 3, which there is not"),
        ({"category_id": -1}, "has the class -1, which there is not"),
        ({"segmentation": {"size": [4, 4], "counts": "08`0P"}}, "the counts of a mask are cut short"),
        ({"segmentation": None}, "is no folder of predictions"),
        ({"score": "<b>"}, "score must be a finite number"),
    ],
)
def test_damaged_predictions_of_a_run_are_one_line(tmp_path, change, message):
    run = write(tmp_path / "run", {"zoo_val": {**semantic(), "instance": {"AP": 1.0, "per_class": {}}}})
    save(run / "predictions/zoo_val", 1)
    marker = run / "predictions/zoo_val/images/000000000000.json"
    content = json.loads(marker.read_text())
    instance = {"category_id": 0, "score": 0.5, "segmentation": encode_mask(TRUE == 0), **change}
    content["prediction"]["instance"] = content["truth"]["instance"] = [instance]
    marker.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        build_report(read_evaluations([run]))


def test_masks_of_each_task():
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :1], right[:, 1:] = True, True
    ids = np.where(left, 1, 2)
    segments = [{"id": 1, "category_id": 2, "score": 0.5}, {"id": 2, "category_id": 0}]
    instances = [{"category_id": 1, "segmentation": encode_mask(left), "score": 0.25}]
    answer = Answer((ids, segments), instances, np.where(left, 0, 1), [right])
    drawn = [list(zip(*masks_of(answer, t, NAMES, ["on the right"]), strict=True)) for t in Answer._fields]
    sky, cat, road = NAMES
    assert [texts for _, _, texts in drawn] == [(road, sky), (cat,), (cat, sky), ("on the right",)]
    assert [scores for _, scores, _ in drawn] == [(0.5, 1), (0.25,), (1, 1), (1,)]
    masks = [[left, right], [left], [right, left], [right]]
    assert all(np.array_equal(found, expected) for (found, _, _), expected in zip(drawn, masks, strict=True))
    assert masks_of(Answer(), "panoptic", NAMES, []) == []


def test_pictures_show_the_images_that_all_runs_have_saved(tmp_path):
    folders = [write(tmp_path / name, {"a_val": semantic()}) for name in ("one", "other")]
    save(folders[0] / "predictions/a_val", count=3)
    save(folders[1] / "predictions/a_val", count=2)
    runs = read_evaluations(folders)
    rows = picture_rows(runs, "a_val", "semantic", 5)
    assert [row.file_name for row in rows] == ["0.jpg", "1.jpg"]
    assert list(rows[0].pictures) == ["image", TRUTH, "one", "other"]
    assert set(rows[0].legend) == set(NAMES)
    assert (rows[0].pictures["image"] == 0).all() and not (rows[0].pictures[TRUTH] == rows[0].pictures["one"]).all()
    assert (rows[0].pictures["one"] == rows[0].pictures["other"]).all()
    assert picture_rows(runs, "a_val", "panoptic", 5) == []


def test_the_page_is_self_contained_and_complete(runs):
    html = build_report(runs)
    assert not re.search(r"<script|<link|@import|url\(", html)
    assert set(re.findall(r'src="([^,"]{0,30})', html)) == {"data:image/png;base64", "data:image/webp;base64"}
    pictures = re.findall(r'base64,([^"]+)"', html)
    assert len(pictures) == 2 + 1 + 2 * 3  # two charts, one confusion table, three pictures of two images
    sizes = [Image.open(io.BytesIO(base64.b64decode(text))).size for text in pictures]
    assert min(min(size) for size in sizes) >= 100
    for text in ('45.80 <span class="note">paper 60.4, -14.60</span>', "33.30", "tiny &amp; new", "0123456789ab"):
        assert text in html
    assert "other: ade20k_150_val: not compared with the paper: 1999 of 2000 images were scored" in html
    for name in ("one", "other"):
        assert f"{name}: exposure to ADE20K is unknown: training data not known (adapter, a, tiny &amp; new)" in html
    assert "b&lt;.jpg" in html and "it is damaged &amp; cut" in html and "sun_rgbd_37_val" in html
    assert "cat &lt;small&gt;" in html and "<small>" not in html and "<x>" not in html
    assert "No pictures" not in html
    assert '<td>images</td><td class="number">2000</td><td class="number">1999 of 2000</td>' in html
    assert "Every image" not in html


def test_a_part_of_a_benchmark_is_not_called_every_image(tmp_path):
    some = {**semantic(), "images": 30, "dataset_images": 500, "skipped": {"a.jpg": "cut"}}
    (run,) = read_evaluations([write(tmp_path / "part", {"ade20k_150_val": some})])
    html = build_report([run])
    assert "Every image" not in html
    assert "30 of 500 images scored" in html and "1 could not be read, 469 were not asked for" in html
    del some["dataset_images"]
    (run,) = read_evaluations([write(tmp_path / "old", {"ade20k_150_val": some})])
    html = build_report([run])
    assert "Every image" not in html and "30 images scored</td><td>of how many is not recorded" in html
    (run,) = read_evaluations([write(tmp_path / "whole", {"ade20k_150_val": semantic()})])
    assert "Every image of every benchmark was read and scored." in build_report([run])


ATTACK = "<script>alert('&')</script>\" onerror=\"alert(1) $\\frac$"


def attacked(content):
    """Put markup into every text and every name that is no word of the format's own."""
    words = {"semantic", "instance", "per_class", "protocol", "images", "dataset_images", "skipped", "remarks", "mIoU"}
    words |= {"IoU", "ACC", "AP", "benchmarks", "weights", "missing", "paper", "row", "tuned_on", "reason", "seconds"}
    words |= {"preset", "command", "sentences", "template", "file", "layout", "fingerprint", "note", "ade20k_150_val"}
    if isinstance(content, dict):
        return {key if key in words else key + ATTACK: attacked(value) for key, value in content.items()}
    return ATTACK if isinstance(content, str) else content


def test_no_field_of_the_results_becomes_markup(tmp_path):
    noted = {**semantic(), "skipped": {"b.jpg": "cut"}, "remarks": {"c.jpg": "empty"}, "coral": {}}
    noted["instance"] = {"AP": 1.0, "per_class": {"fish": {"AP": 2.0}}}
    whole = {"ade20k_150_val": noted, "reef_val": {**semantic(), "protocol": "global"}}
    more = {"template": "{name}", "missing": {"sun_rgbd_37_val": "not found"}, "seconds": "12"}
    path = write(tmp_path / "run", whole, **more) / "results.json"
    path.write_text(json.dumps(attacked(json.loads(path.read_text()))))
    html = build_report(read_evaluations([tmp_path / "run"], [f"run {ATTACK}"]))
    assert "&lt;script&gt;" in html and "<script" not in html
    assert not re.search(r"<[^>]*onerror=[^>]*>", re.sub(r'"[^"]*"', '""', html))
    paper = {"row": None, "tuned_on": "", "reason": ATTACK}
    run = read_evaluations([write(tmp_path / "run", {"ade20k_150_val": semantic()}, paper=paper)])
    assert "not compared with the paper: &lt;script&gt;" in build_report(run)


def test_stuff_has_no_ap(tmp_path):
    instance = {"AP": 12.0, "per_class": {"cat <small>": {"AP": 12.0}}}
    (run,) = read_evaluations([write(tmp_path / "one", {"ade20k_150_val": {**semantic(), "instance": instance}})])
    html = build_report([run])
    assert '<td>sky</td><td class="number">50.0</td><td class="number">n/a</td>' in html
    metrics = class_metrics(run, ["ade20k_150_val"])
    ious, precision = class_bars({"one": metrics}).axes
    assert [text.get_text() for text in precision.texts] == ["n/a", "n/a"] and not ious.texts


def test_figure_2_has_what_is_comparable_beside_the_paper(tmp_path, runs):
    assert overview_scores(runs[0]) == {"ade20k_150_val": 45.8} and overview_scores(runs[1]) == {}
    (axis,) = overview_bars({"one": overview_scores(runs[0])}).axes
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axis.containers}
    assert heights == {
        "one": [45.8],
        "paper: OpenWorldSAM": [60.4, 33.1, 73.7, 47.5, 67.7, 55.6],
        "paper: X-Decoder (L)": [29.6, 9.2, 64.0, 16.1, 43.0, 29.7],
    }
    assert "Fig. 2" in build_report(runs) and "Fig. 2" not in build_report(runs[1:])


def test_runs_are_named_by_the_ends_of_their_paths_that_differ(tmp_path):
    folders = [write(tmp_path / name, {"a_val": semantic()}) for name in ("a/main", "b/main", "b/other")]
    assert [run.name for run in read_evaluations(folders[1:])] == ["main", "other"]
    assert [run.name for run in read_evaluations(folders)] == ["a/main", "b/main", "b/other"]


def test_a_benchmark_that_a_run_lacks_is_not_available(tmp_path):
    runs = read_evaluations([write(tmp_path / name, {f"{name}_val": semantic()}) for name in ("a", "b")])
    html = build_report(runs)
    assert '<td>a_val</td><td>images</td><td class="number">2000</td><td class="number">n/a</td>' in html
    assert '<td>semantic mIoU</td><td class="number">n/a</td><td class="number">45.80' in html


def test_pictures_of_a_benchmark_take_less_than_a_megabyte(photograph):
    """At most: four images, three tasks, and of each image, ground truth and prediction."""
    image = np.array(Image.open(photograph).convert("RGB"))
    masks = np.stack([image[..., 0] > 150, image[..., 2] < 60])
    drawing = LabelledMasks("instance", ("light", "dark"), masks, np.ones(2, np.float32), np.arange(2))
    assert 4 * 3 * 3 * len(picture_html(draw_masks(image, drawing, max_side=PICTURE_SIDE), "")) < 10**6


def test_page_without_saved_predictions_says_how_to_get_pictures(runs):
    html = build_report(runs[1:])
    assert "No pictures" in html and "webp" not in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "nowhere"], "nowhere/results.json not found. openworldsam evaluate --output nowhere writes it"),
        (["--runs", "one", "broken"], "broken/results.json is not json"),
        (["--runs", "damaged"], "damaged/results.json is not what openworldsam evaluate writes"),
        (["--runs", "unlike"], "unlike/results.json is not what openworldsam evaluate writes"),
        (["--runs", "cut"], "images/000000000000.json is no file of openworldsam evaluate: it has no 'prediction'"),
        (["--runs", "lacking"], "lacking/results.json is not what openworldsam evaluate writes"),
        (["--runs", "one", "one"], "--names needs 2 different names, one per run; got one, one"),
        (["--runs", "one", "other", "--names", "a"], "--names needs 2 different names"),
        (["--runs", "one", "--benchmarks", "b_val"], "no run was evaluated on b_val; available: ade20k_150_val"),
        (["--runs", "one", "--images", "-1"], "--images must be at least 0, got -1"),
        (["--runs", "lost"], "0.jpg"),
        (["--runs", "papered"], "papered/results.json is not what openworldsam evaluate writes"),
        (["--runs", "uncounted"], "uncounted/results.json is not what openworldsam evaluate writes"),
        (["--runs", "huge"], "huge/results.json is not what openworldsam evaluate writes"),
        (["--runs", "endless"], "endless/results.json is not what openworldsam evaluate writes"),
        (["--runs", "seen"], "seen/results.json is not what openworldsam evaluate writes"),
        (["--runs", "half"], "half/results.json is not what openworldsam evaluate writes"),
        (["--runs", "one", "--others", "one=other"], "--others needs names that no run and no other method has"),
    ],
)
def test_user_errors_are_one_line(runs, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("broken").mkdir()
    Path("broken/results.json").write_text('{"benchmarks": ')
    write(Path("damaged"), {"a_val": semantic("45")})
    write(Path("lacking"), {"a_val": semantic()}, weights=None)
    write(Path("unlike"), {"a_val": {**semantic(), "skipped": ["b.jpg"]}})
    save(write(Path("cut"), {"a_val": semantic()}) / "predictions/a_val", count=1)
    Path("cut/predictions/a_val/images/000000000000.json").write_text("{}")
    save(write(Path("lost"), {"a_val": semantic()}) / "predictions/a_val")
    write(Path("papered"), {"a_val": semantic()}, paper={"row": 3, "more": ""})
    weights = {"adapter": {"layout": "adapter", "fingerprint": "0", "trained_on": ["coco"]}}
    write(Path("seen"), {"a_val": semantic()}, weights=weights)
    write(Path("huge"), {"a_val": semantic(10**400)})
    write(Path("endless"), {"a_val": semantic(sky=float("inf"))})
    write(Path("half"), {"a_val": semantic(**{"half a pair \ud800": 1.0})})
    write(Path("uncounted"), {"a_val": {**semantic(), "images": "2"}})
    Path("lost/predictions/a_val/images/000000000000.png").unlink()
    with pytest.raises(SystemExit) as exited:
        main([*arguments, "--output", "report.html"])
    (line,) = capsys.readouterr().err.splitlines()
    assert exited.value.code == 2 and line.startswith("error: ") and message in line
    assert not Path("report.html").exists()
