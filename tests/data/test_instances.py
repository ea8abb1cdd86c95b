"""COCO's instance format: objects as segments, overlaps, crowds, and bad jsons."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from openworldsam import cli
from openworldsam.data.check import read_record
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.records import as_record
from openworldsam.data.records.coco_json import Category, read_categories
from openworldsam.data.records.instances import load_instances
from openworldsam.evaluation.examples import EvaluationDataset, remark

run_check = cli.command("check")

CATEGORIES = (Category(5, "fish", True), Category(2, "shark", True))


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


@pytest.fixture
def make(tmp_path):
    def write(change=lambda content: None):
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in (4, 7)],
            "annotations": [
                {"id": 11, "image_id": 7, "category_id": 2, "segmentation": square(1, 1, 2), "iscrowd": 0},
                {"id": 12, "image_id": 7, "category_id": 5, "segmentation": square(0, 0, 6)},
                {"id": 13, "image_id": 7, "category_id": 5, "segmentation": square(4, 4, 4), "iscrowd": 1},
            ],
            "categories": [{"id": 5, "name": "fish"}, {"id": 2, "name": "shark"}],
        }
        change(content)
        for name in ("4.png", "7.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        (tmp_path / "a.json").write_text(json.dumps(content))
        return tmp_path / "a.json"

    return write


def test_objects_are_segments_the_small_above_the_large_above_crowds(make):
    empty, record = load_instances(make(), make().parent, categories=CATEGORIES)
    assert not empty["instances"] and not record.is_referring
    ids, segments = record.read_panoptic()
    assert [(s["id"], s["category_id"], s["iscrowd"]) for s in segments] == [(1, 1, 0), (2, 0, 0), (3, 0, 1)]
    assert record.segments() == segments
    assert {i: int((ids == i).sum()) for i in range(4)} == {0: 64 - 36 - 12, 1: 4, 2: 32, 3: 12}
    assert not empty.read_panoptic()[0].any()


@pytest.mark.parametrize("root", ["", "val2017"])
def test_files_of_lvis_are_named_by_their_addresses(make, tmp_path, root):
    """Below the folder of all images, or that of a split; and what is null is not given."""

    def change(content):
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
            image |= {"neg_category_ids": None, "not_exhaustive_category_ids": None}

    path = make(change)
    (tmp_path / "val2017").mkdir()
    for name in ("4.png", "7.png"):
        (tmp_path / name).rename(tmp_path / "val2017" / name)
    records = load_instances(path, tmp_path / root, categories=CATEGORIES)
    assert [record["file_name"] for record in records] == [str(tmp_path / f"val2017/{i}.png") for i in (4, 7)]
    assert not any("absent" in record or "not_exhaustive" in record for record in records)


def test_classes_of_a_json_that_says_nothing_of_things(make):
    assert read_categories(make(), all_things=True) == CATEGORIES
    with pytest.raises(ValueError, match="isthing"):
        read_categories(make())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=9), "has the category id 9, none of the known"),
        (lambda c: c["annotations"][0].update(image_id=9), "its list of images does not have 9"),
        (lambda c: c["images"].append(c["images"][0]), "two images have the id 4"),
        (lambda c: c["annotations"].clear(), "2 listed, none with an object"),
    ],
)
def test_bad_json_is_an_error(make, change, message):
    path = make(change)
    with pytest.raises(ValueError, match=message):
        load_instances(path, path.parent, categories=CATEGORIES)


@pytest.mark.parametrize(
    ("segmentation", "pixels", "problem"),
    [
        ({"size": [9, 9], "counts": [81]}, 0, r"\[9, 9\]"),
        ([[1, 1, 2, 2]], 0, "without a polygon of three points"),
        ([], 0, "without a polygon of three points"),
        (None, 0, "without a polygon"),
        ([[1, 1, 3, 1, float("nan"), 3]], 0, "far outside"),
        ([*square(1, 1, 2), [1, 1, 3, 1, 9e9, 3]], 4, "far outside"),
        ([*square(1, 1, 2), ["a"] * 6], 4, "neither polygons nor an RLE"),
        ([*square(1, 1, 2), 5], 4, "neither polygons nor an RLE"),
    ],
)
def test_a_damaged_mask_makes_its_object_incomplete_and_no_other(make, caplog, segmentation, pixels, problem):
    def change(content):
        annotation = content["annotations"][0]
        annotation.update(segmentation=segmentation)
        if segmentation is None:
            del annotation["segmentation"]

    path = make(change)
    record = load_instances(path, path.parent, categories=CATEGORIES)[1]
    ids, _ = record.read_panoptic()
    assert [int((ids == i).sum()) for i in (1, 2, 3)] == [pixels, 36 - pixels, 12]
    assert [i["id"] for i in record.read_instances()] == ([1] if pixels else []) + [2, 3]
    assert re.search(rf"7\.png: object 1: .*{problem}.*; it is incomplete or left out", caplog.text)
    (said,) = record.damaged_objects()
    assert read_record(record) == (f"{record['file_name']}: {said}", False)
    mapped = DatasetMapper(class_names=("fish", "shark"), is_thing=(True, True))(record, np.random.default_rng(0))
    assert mapped["prompts"] == ["fish"] + ["shark"] * (pixels > 0)
    example = EvaluationDataset([record], class_names=("fish", "shark"), is_thing=(True, True))[0]
    assert remark(example) == f"the ground truth is incomplete: {said}"
    options = {"class_names": ("fish", "shark"), "is_thing": (True, True), "protocol": "present+absent"}
    assert EvaluationDataset([record], **options)[0].truth.absent == []  # the shark is there, if unseen


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("area", value) for value in (float("nan"), -1, "4", [4])),
        *(
            ("bbox", value)
            for value in ([1, 1, -2, 2], [1, 1, float("inf"), 2], [1, 1, 2], ["1", "1", "2", "2"], {"x": 1})
        ),
    ],
)
def test_an_area_or_box_that_is_none_is_that_of_the_mask(make, key, value):
    path = make(lambda c: c["annotations"][0].update({"area": 5, "bbox": [1, 1, 2, 2.5], key: value}))
    record = load_instances(path, path.parent, categories=CATEGORIES)[1]
    found = record.read_instances()[0]
    given = {"area": 5, "bbox": [1, 1, 2, 2.5]}
    assert {k: found[k] for k in given} == {**given, key: {"area": 4, "bbox": [1, 1, 2, 2]}[key]}
    (said,) = record.damaged_objects()
    assert said.startswith(f"object 1: its {key} is ") and read_record(record)[0].endswith(said)


@pytest.mark.parametrize("absent", [None, []])
def test_an_area_or_box_that_is_not_given_is_no_damage(make, absent):
    path = make(lambda c: c["annotations"][0].update(area=None, bbox=absent, iscrowd=None))
    record = load_instances(path, path.parent, categories=CATEGORIES)[1]
    assert record.read_instances()[0]["bbox"] == [1, 1, 2, 2] and not record.damaged_objects()
    assert record.read_instances()[0]["iscrowd"] == 0


def test_a_damaged_mask_of_an_expression_takes_no_other_with_it(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    objects = [
        {"id": i, "sentences": [text], "segmentation": s}
        for i, text, s in ((31, "it", square(1, 1, 2)), (32, "that", []))
    ]
    record = as_record(
        {"file_name": str(tmp_path / "a.png"), "image_id": 0, "height": 8, "width": 8, "annotations": objects}
    )
    assert [r.sentences for r in record.read_referring()] == [("it",)] and "a.png: object 32: " in caplog.text
    assert "object 32: " in remark(EvaluationDataset([record])[0])


def test_only_crowds_and_objects_without_masks_are_said_at_once(make, capsys, exit_status, tmp_path):
    for change in ({"iscrowd": 1}, {"segmentation": []}):
        path = make(lambda c, change=change: [a.update(change) for a in c["annotations"]])
        with pytest.raises(ValueError, match="2 listed, none with an object that has a mask and is not a crowd"):
            load_instances(path, path.parent, categories=CATEGORIES)
    (tmp_path / "own.yaml").write_text(f"name: {tmp_path.name}\nimages: .\ninstances: a.json\n")
    assert exit_status(run_check, "--own", tmp_path / "own.yaml") == 1
    assert "none with an object that has a mask" in capsys.readouterr().out


def test_the_check_counts_images_without_objects(make, capsys, exit_status, tmp_path):
    make()
    (tmp_path / "own.yaml").write_text(f"name: {tmp_path.name}\nimages: .\ninstances: a.json\n")
    for options in ((), ("--read", "--workers", 1)):
        assert exit_status(run_check, "--own", tmp_path / "own.yaml", *options) == 0
        assert "1 of 2 images have no object to learn from; a training passes them over" in capsys.readouterr().out


def test_missing_images(make, caplog):
    path = make()
    (path.parent / "4.png").unlink()
    assert len(load_instances(path, path.parent, categories=CATEGORIES)) == 2
    assert "1 of 2 files" in caplog.text
    (path.parent / "7.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 2 .* fetch"):
        load_instances(path, path.parent, categories=CATEGORIES, hint="fetch them")


def test_an_area_under_another_is_not_counted(make):
    path = make(lambda c: c["annotations"].append({**c["annotations"][0], "id": 14}))
    ids, _ = load_instances(path, path.parent, categories=CATEGORIES)[1].read_panoptic()
    assert np.unique(ids).tolist() == [0, 2, 3, 4]
