"""COCO panoptic through Detectron2's catalogs."""

import importlib
import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import rgb2id
from PIL import Image

import openworldsam.data.datasets
from openworldsam.data.datasets import coco
from openworldsam.data.datasets.catalog import PanopticFiles, register_panoptic
from openworldsam.data.datasets.coco import CATEGORIES, COCO_STUFF
from openworldsam.data.records.coco_json import Category, read_categories
from openworldsam.data.records.panoptic import load_panoptic

NAMES = [category.name for category in CATEGORIES]
VAL = "coco_2017_val_panoptic_openworldsam"


@pytest.fixture
def sample(shared):
    return shared / "data/coco_panoptic_sample"


@pytest.fixture
def make_json(tmp_path):
    """A panoptic json of two images with their files; `change` edits its content before it is written."""

    def make(change=lambda content: None):
        segments = [{"id": 7, "category_id": 1, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]}]
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 2, "width": 2} for i in (1, 2)],
            "annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in (1, 2)],
        }
        change(content)
        for name in ("1.jpg", "2.jpg", "1.png", "2.png"):
            (tmp_path / name).touch()
        path = tmp_path / "panoptic.json"
        path.write_text(json.dumps(content))
        return path

    return make


def load(path, **options):
    return load_panoptic(path, path.parent, path.parent, categories=CATEGORIES, **options)


def test_class_list():
    assert len(NAMES) == len(set(NAMES)) == 133
    assert [category.is_thing for category in CATEGORIES] == [True] * 80 + [False] * 53
    assert NAMES[:2] == ["person", "bicycle"] and NAMES[79:82] == ["toothbrush", "banner", "blanket"]
    assert {"tree", "grass", "floor", "wall", "floor-wood", "wall-brick", "window-blind", "playingfield"} <= set(NAMES)
    assert not [name for name in NAMES if any(suffix in name for suffix in ("-other", "-merged", "-stuff"))]
    assert NAMES[-1] == "rug" and CATEGORIES[-1].id == 200
    assert set(NAMES[80:]) == COCO_STUFF


def test_metadata_fit_detectron2s_evaluators():
    from detectron2.evaluation import COCOPanopticEvaluator

    for name in coco.DATASETS:
        metadata = MetadataCatalog.get(name)
        assert metadata.vocabulary == metadata.thing_classes == metadata.stuff_classes == NAMES
        assert sum(metadata.is_thing) == 80 and metadata.ignore_label == 255 and metadata.label_divisor == 1000
        assert len(metadata.thing_dataset_id_to_contiguous_id) == 80
        assert metadata.stuff_dataset_id_to_contiguous_id[200] == 132
        assert metadata.evaluator_type == "coco_panoptic_seg"
        COCOPanopticEvaluator(name)


def test_registering_again_changes_nothing():
    before = set(DatasetCatalog.list())
    importlib.reload(openworldsam.data.datasets)
    assert set(DatasetCatalog.list()) == before


def test_real_sample_through_the_catalog(sample, tmp_path, monkeypatch):
    (tmp_path / "coco/annotations").mkdir(parents=True)
    for target, source in (("val2017", "images"), ("panoptic_val2017", "panoptic")):
        (tmp_path / "coco" / target).symlink_to(sample / source)
    shutil.copy(sample / "panoptic.json", tmp_path / "coco/annotations/panoptic_val2017.json")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = DatasetCatalog.get(VAL)
    assert [record["image_id"] for record in records] == [142238, 439180, 39769]
    assert [len(record["segments_info"]) for record in records] == [18, 32, 6]
    for record in records:
        assert np.asarray(Image.open(record["file_name"])).shape[:2] == (record["height"], record["width"])
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"]).convert("RGB")))
        for segment in record["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]
            assert segment["isthing"] == (segment["category_id"] < 80)
    assert [NAMES[s["category_id"]] for s in records[2]["segments_info"]] == [
        "cat", "cat", "couch", "remote", "remote", "blanket",
    ]  # fmt: skip
    assert records[0]["sem_seg_file_name"] == str(tmp_path / "coco/panoptic_semseg_val2017/000000142238.png")
    metadata = MetadataCatalog.get(VAL)
    assert metadata.panoptic_json == str(tmp_path / "coco/annotations/panoptic_val2017.json")
    assert metadata.panoptic_root == str(tmp_path / "coco/panoptic_val2017")


def test_the_root_is_looked_up_at_loading(tmp_path, monkeypatch):
    for root in ("first", "second"):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / root))
        with pytest.raises(FileNotFoundError, match=f"{root}/coco/annotations/panoptic_val2017.json"):
            DatasetCatalog.get(VAL)
        assert MetadataCatalog.get(VAL).image_root == str(tmp_path / root / "coco/val2017")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^datasets/coco/annotations/.*filtvlp.json .*prepare coco"):
        DatasetCatalog.get("coco_2017_train_panoptic_openworldsam")


def test_custom_dataset_with_custom_classes(make_json):
    def own(content):
        content["categories"] = [
            {"id": 9, "name": "lawn-other", "isthing": 0},
            {"id": 1, "name": "mower", "isthing": 1},
        ]

    path = make_json(own)
    categories = read_categories(path)
    assert categories == (Category(9, "lawn-other", False), Category(1, "mower", True))
    register_panoptic("own", PanopticFiles(str(path), str(path.parent), str(path.parent)), categories)
    try:
        (segment,) = DatasetCatalog.get("own")[0]["segments_info"]
        assert segment == {"id": 7, "category_id": 1, "isthing": True, "iscrowd": 0, "area": 4}
        assert MetadataCatalog.get("own").vocabulary == ["lawn-other", "mower"]
        assert "sem_seg_file_name" not in DatasetCatalog.get("own")[0]
    finally:
        DatasetCatalog.remove("own")
        MetadataCatalog.remove("own")


@pytest.mark.parametrize("key", ["id", "name"])
def test_a_class_twice_is_an_error(make_json, key):
    category = {"id": 1, "name": "one", "isthing": 1}
    other = {"id": 2, "name": "two", "isthing": 1, key: category[key]}
    with pytest.raises(ValueError, match=f"same {key}"):
        read_categories(make_json(lambda content: content.update(categories=[category, other])))


def test_a_text_is_no_flag_of_things(make_json):
    path = make_json(lambda c: c.update(categories=[{"id": 1, "name": "sky", "isthing": "0"}]))
    with pytest.raises(ValueError, match="isthing must be 0 or 1, got '0'"):
        read_categories(path)


def test_json_without_classes_is_an_error(make_json):
    with pytest.raises(ValueError, match="no 'categories'"):
        read_categories(make_json())


@pytest.mark.parametrize("missing", ["2.jpg", "2.png"])
def test_some_missing_files_are_a_warning_all_an_error(make_json, missing, caplog):
    path = make_json()
    (path.parent / missing).unlink()
    assert len(load(path)) == 2
    assert "1 of 2 files" in caplog.text and missing in caplog.text
    (path.parent / missing.replace("2", "1")).unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 2 files .* fetch them"):
        load(path, hint="fetch them")


def test_images_without_annotation_are_not_left_out_in_silence(make_json, caplog):
    assert len(load(make_json(lambda c: c["annotations"].pop()))) == 1
    assert "panoptic.json: 1 of 2 images have no annotation and are left out, such as 2.jpg" in caplog.text


def test_null_is_not_given(make_json):
    path = make_json(lambda c: c["annotations"][0]["segments_info"][0].update(area=None, iscrowd=None))
    segment = load(path)[0].segments()[0]
    assert (segment["area"], segment["iscrowd"]) == (0, 0)


def set_category(content, value):
    content["annotations"][1]["segments_info"] = [{"id": 7, "category_id": value, "area": 4}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: set_category(c, 12), "segment 7 of image 2 has the category id 12, .* none of the 133"),
        (lambda c: c.pop("annotations"), "no COCO panoptic json: it has no 'annotations'"),
        (lambda c: c["annotations"][0].pop("segments_info"), "no 'segments_info'"),
        (lambda c: c["images"].pop(), "its list of images does not have 2"),
        (lambda c: c.update(images=3), "no COCO panoptic json"),
        (lambda c: c["annotations"].clear(), "no usable image: 0 annotated"),
        (lambda c: [a.update(segments_info=[]) for a in c["annotations"]], "no usable image: 2 annotated"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd=1), "no usable image"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "1 images are annotated twice, such as image 1"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(id=[]),
            r"the id of a segment of image 1 is \[\], not a",
        ),
        (
            lambda c: c["annotations"][0].update(segments_info=2 * c["annotations"][0]["segments_info"]),
            r"two segments of image 1 have one id: \[7, 7\]",
        ),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=0), "image 1 has the id 0; .* 0 is void"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=2**24), "image 1 has the id 16777216; ids are"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd="no"), "iscrowd must be 0 or 1, got 'no'"),
        (lambda c: c["images"][0].update(width=0), "the width of image 1 is 0, not one of 1 to 65535"),
        (lambda c: c["images"][0].update(width=2.5), "the width of image 1 is 2.5, not a whole number"),
        (lambda c: c["images"][0].update(id=None), "an image id that is no text is None, not a whole number"),
        (lambda c: c["images"][0].update(id="1"), "some image ids are numbers and some are texts"),
        (lambda c: c["annotations"][1].update(image_id="2"), "its list of images does not have '2'"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(area="4"),
            "area of segment 7 is '4', not a number of",
        ),
    ],
)
def test_bad_json_is_an_error(make_json, change, message):
    with pytest.raises(ValueError, match=message):
        load(make_json(change))


@pytest.mark.parametrize(("text", "message"), [('{"images": [', "cut short"), ("[]", "holds a list")])
def test_a_file_without_a_json_object_is_an_error(tmp_path, text, message):
    (tmp_path / "panoptic.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "panoptic.json")
