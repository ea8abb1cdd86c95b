"""COCO's instance format: objects as segments, overlaps, crowds, and bad jsons."""

import json

import numpy as np
import pytest
from PIL import Image

from openworldsam.data.records.coco_json import Category, read_categories
from openworldsam.data.records.instances import load_instances

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


def test_classes_of_a_json_that_says_nothing_of_things(make):
    assert read_categories(make(), all_things=True) == CATEGORIES
    with pytest.raises(ValueError, match="isthing"):
        read_categories(make())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=9), "has the category id 9, none of the known"),
        (lambda c: c["annotations"][0].pop("segmentation"), "no 'segmentation'"),
        (lambda c: c["annotations"][0].update(image_id=9), "its list of images does not have 9"),
        (lambda c: c["images"].append(c["images"][0]), "two images have the id 4"),
        (lambda c: c["annotations"].clear(), "2 listed, none with an object"),
    ],
)
def test_bad_json_is_an_error(make, change, message):
    path = make(change)
    with pytest.raises(ValueError, match=message):
        load_instances(path, path.parent, categories=CATEGORIES)


def test_a_damaged_mask_names_its_image(make):
    wrong = {"size": [9, 9], "counts": [81]}
    path = make(lambda c: c["annotations"][0].update(segmentation=wrong))
    record = load_instances(path, path.parent, categories=CATEGORIES)[1]
    with pytest.raises(ValueError, match=r"an object of .*7\.png: .*\[9, 9\]"):
        record.read_panoptic()


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
