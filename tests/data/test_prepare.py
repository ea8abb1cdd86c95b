"""The preparation of COCO: filtered list, semantic PNGs, and the check of all of it."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

from openworldsam.data.datasets.coco import CATEGORIES
from openworldsam.data.prepare import coco
from openworldsam.data.prepare.plan import Plan, require_count
from openworldsam.data.records.panoptic import load_panoptic

FILTERED = "coco/annotations/panoptic_train2017_filtrefgumdval_filtvlp.json"
HELD_OUT = "coco/annotations/panoptic_train2017_held_out.json"
CAT, SKY = 15, 119  # contiguous ids; 17 and 187 in COCO's own files


@pytest.fixture
def command(prepare):
    return lambda root, *args: prepare("coco", "--root", root, "--workers", 1, *args)


def write_split(root, split, image_ids):
    """Images of 4 x 6 pixels: left third void, then a cat (id 1000) and the sky (id 70000)."""
    ids = np.repeat([[0, 0, 1000, 1000, 70000, 70000]], 4, axis=0)
    segments = [
        {"id": 1000, "category_id": 17, "iscrowd": 0, "area": 8, "bbox": [2, 0, 2, 4]},
        {"id": 70000, "category_id": 187, "iscrowd": 0, "area": 8, "bbox": [4, 0, 2, 4]},
    ]
    for folder in (f"{split}2017", f"panoptic_{split}2017", "annotations"):
        (root / "coco" / folder).mkdir(parents=True, exist_ok=True)
    content = {"info": {"year": 2018}, "images": [], "annotations": [], "categories": []}
    for i in image_ids:
        name = f"{i:012d}"
        Image.new("RGB", (6, 4)).save(root / f"coco/{split}2017/{name}.jpg")
        Image.fromarray(id2rgb(ids)).save(root / f"coco/panoptic_{split}2017/{name}.png")
        content["images"].append({"id": i, "file_name": f"{name}.jpg", "height": 4, "width": 6})
        content["annotations"].append({"image_id": i, "file_name": f"{name}.png", "segments_info": segments})
    (root / f"coco/annotations/panoptic_{split}2017.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small COCO of 4 training and 2 validation images; RefCOCOg's val images are 2 and 9."""
    write_split(tmp_path, "train", [1, 2, 3, 4])
    write_split(tmp_path, "val", [11, 12])
    refs = [
        {"ann_id": i, "image_id": image, "split": split, "sentences": []}
        for i, (image, split) in enumerate([(1, "train"), (2, "val"), (2, "val"), (9, "val"), (3, "test")])
    ]
    (tmp_path / "refcocog").mkdir()
    (tmp_path / "refcocog/refs(umd).p").write_bytes(pickle.dumps(refs, 2))
    monkeypatch.setattr(coco, "EXPECTED_IMAGES", {"train": 4, "val": 2})
    return tmp_path


def semantic_files(root, split="train"):
    folder = root / f"coco/panoptic_semseg_{split}2017"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def listed(root, list_name=FILTERED):
    content = json.loads((root / list_name).read_text())
    assert [image["id"] for image in content["images"]] == [a["image_id"] for a in content["annotations"]]
    return [image["id"] for image in content["images"]]


def test_makes_everything_and_finds_it_in_order(root, command, capsys):
    assert command(root) == 0
    assert listed(root) == [1, 3, 4] and listed(root, HELD_OUT) == [2]
    for split, image in (("train", 3), ("val", 12)):
        labels = Image.open(root / f"coco/panoptic_semseg_{split}2017/{image:012d}.png")
        assert labels.mode == "L" and np.asarray(labels).tolist() == [[255, 255, CAT, CAT, SKY, SKY]] * 4
    assert [CATEGORIES[i].name for i in (CAT, SKY)] == ["cat", "sky"]
    capsys.readouterr()
    assert command(root, "--check") == 0
    out, err = capsys.readouterr()
    assert not err
    assert "train: 4 of 4 panoptic PNGs agree" in out and "val: 2 of 2 semantic PNGs" in out
    assert "filtered list: 3 of 4 images; made by prepare.py coco: without 2 images of RefCOCOg-UMD val" in out


def test_several_processes_make_the_same(root, command):
    assert command(root, "--splits", "val") == 0
    first = [(root / "coco/panoptic_semseg_val2017" / name).read_bytes() for name in semantic_files(root, "val")]
    shutil.rmtree(root / "coco/panoptic_semseg_val2017")
    assert command(root, "--splits", "val", "--workers", "2") == 0
    again = [(root / "coco/panoptic_semseg_val2017" / name).read_bytes() for name in semantic_files(root, "val")]
    assert len(first) == 2 and first == again


def test_real_sample(shared, tmp_path):
    sample = shared / "data/coco_panoptic_sample"
    folders = (sample / "images", sample / "panoptic", tmp_path)
    records = load_panoptic(sample / "panoptic.json", *folders, categories=CATEGORIES)
    assert coco.make_semantic_pngs(records, workers=1, title="") == []
    for record in records:
        assert coco.check_panoptic(record) is None
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        areas = dict.fromkeys((s["category_id"] for s in record["segments_info"]), 0)
        for segment in record["segments_info"]:
            areas[segment["category_id"]] += segment["area"]
        areas[255] = record["height"] * record["width"] - sum(areas.values())
        assert {c: (labels == c).sum() for c in areas} == areas and labels.size == sum(areas.values())


def test_karpathy_images_are_left_out_too(root, command):
    karpathy = [{"cocoid": 3, "split": "test"}, {"cocoid": 4, "split": "val"}, {"cocoid": 1, "split": "restval"}]
    (root / "dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    args = ["--karpathy", str(root / "dataset_coco.json")]
    assert command(root, *args) == 0 and listed(root) == [1, 4] and listed(root, HELD_OUT) == [2, 3]
    (root / FILTERED).unlink()
    assert command(root, *args, "--karpathy-splits", "val", "test") == 0 and listed(root) == [1]
    assert listed(root, HELD_OUT) == [2, 3, 4]  # that of the new list
    assert "8" not in (note := json.loads((root / FILTERED).read_text())["info"])["openworldsam"]
    assert "without 2 images of COCO-Karpathy val and test" in note["openworldsam"] and note["year"] == 2018


def test_the_public_list_is_left_alone(root, command, capsys):
    shutil.copy(root / "coco/annotations/panoptic_train2017.json", root / FILTERED)
    before = (root / FILTERED).read_bytes()
    (root / "refcocog/refs(umd).p").unlink()
    assert command(root) == 0 and "left as it is" in capsys.readouterr().out
    assert (root / FILTERED).read_bytes() == before
    assert command(root, "--check") == 1
    assert "nothing is removed" in capsys.readouterr().err


def test_check_finds_images_of_refcocog_val(root, command, capsys):
    assert command(root) == 0
    (root / "coco/annotations/refcocog_umd_val.json").write_text(json.dumps({"images": [{"id": 3}, {"id": 9}]}))
    assert command(root, "--check") == 1
    assert "1 images are in RefCOCOg val, such as 3" in capsys.readouterr().err


def test_interrupted_preparation_goes_on(root, command, monkeypatch, capsys):
    write, done = coco.write_semantic, []

    def interrupted(record):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(record["image_id"])
        return write(record)

    monkeypatch.setattr(coco, "write_semantic", interrupted)
    assert command(root, "--splits", "train") == 130
    assert "goes on from here" in capsys.readouterr().err
    assert semantic_files(root) == ["000000000001.png", "000000000002.png"]  # and no part
    monkeypatch.setattr(coco, "write_semantic", lambda record: done.append(record["image_id"]) or write(record))
    assert command(root, "--splits", "train") == 0
    assert done == [1, 2, 3, 4] and len(semantic_files(root)) == 4


def test_parts_of_a_killed_run_are_removed(root, command, leave_part):
    folder = root / "coco/panoptic_semseg_val2017"
    left, others = leave_part(folder / "000000000011.png"), folder / ".000000000012.png.2.part"
    others.touch()
    assert command(root, "--splits", "val") == 0
    assert not left.exists()
    assert semantic_files(root, "val") == [others.name, "000000000011.png", "000000000012.png"]


def test_a_full_disk_leaves_no_half_file(root, command, monkeypatch, capsys):
    def full(self, path, format):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert command(root, "--splits", "val") == 2
    assert "no space left" in capsys.readouterr().err and semantic_files(root, "val") == []


def replace_png(root, values):
    path = root / "coco/panoptic_val2017/000000000012.png"
    Image.fromarray(id2rgb(np.array(values))).save(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [[0, 0, 1000, 1000, 70000, 70000]] * 3 + [[5, 0, 1000, 1000, 70000, 70000]],
            "has ids that its json does not: [5]",
        ),
        ([[0, 0, 1000, 1000, 70000]] * 4, "is 5 x 4, its image is 6 x 4"),
    ],
)
def test_wrong_panoptic_png_is_reported(root, command, capsys, values, message):
    replace_png(root, values)
    assert command(root, "--splits", "val") == 1
    assert message in capsys.readouterr().err and semantic_files(root, "val") == ["000000000011.png"]
    assert command(root, "--splits", "val", "--check") == 1
    out, err = capsys.readouterr()
    assert message in err and "000000000012.png" in err and "1 of 2 panoptic PNGs agree" in out


def test_check_reports_other_areas_and_damaged_files(root, command, capsys):
    replace_png(root, [[0, 0, 0, 0, 70000, 70000]] * 4)
    (root / "coco/panoptic_val2017/000000000011.png").write_bytes(b"damaged")
    assert command(root, "--splits", "val", "--check") == 1
    err = capsys.readouterr().err
    assert "segment 1000 has 0 pixels, its json says 8" in err and "000000000011.png is not a readable image" in err


def test_check_reports_missing_files_and_counts(root, command, monkeypatch, capsys):
    assert command(root, "--splits", "val") == 0
    (root / "coco/val2017/000000000011.jpg").unlink()
    (root / "coco/panoptic_val2017/000000000012.png").unlink()
    (root / "coco/panoptic_semseg_val2017/000000000012.png").unlink()
    monkeypatch.setattr(coco, "EXPECTED_IMAGES", {"train": 118_287, "val": 5_000})
    capsys.readouterr()
    assert command(root, "--check") == 1
    out, err = capsys.readouterr()
    assert "val: 2 images are listed, COCO has 5000" in err
    assert "val: 1 images missing, such as" in err and "val2017/000000000011.jpg" in err
    assert "val: 1 panoptic PNGs missing" in err and "val: 1 semantic PNGs missing" in err
    assert "panoptic_train2017_filtrefgumdval_filtvlp.json not found. `openworldsam prepare coco` makes it" in err
    assert "val: 1 of 2 images" in out


def test_many_problems_are_not_all_shown(root, command, capsys):
    write_split(root, "val", range(100, 130))
    for path in (root / "coco/panoptic_val2017").iterdir():
        path.write_bytes(b"")
    assert command(root, "--splits", "val") == 1
    err = capsys.readouterr().err
    assert err.count("problem:") == 20 and "and 10 more problems" in err


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("coco/annotations/panoptic_train2017.json", "panoptic_train2017.json not found. datasets/README.md says"),
        ("refcocog/refs(umd).p", "refs(umd).p not found. datasets/README.md says how to get it"),
    ],
)
def test_missing_input_is_named(root, command, capsys, missing, message):
    (root / missing).unlink()
    assert command(root) == 2
    assert message in capsys.readouterr().err and not (root / FILTERED).exists()


def test_references_of_other_images_are_an_error():
    content = {"images": [{"id": 1}], "annotations": [{"image_id": 1}]}
    with pytest.raises(ValueError, match="none of the 1 images"):
        coco.filter_panoptic(content, {7}, "")
    with pytest.raises(ValueError, match="no 'annotations'"):
        coco.filter_panoptic({"images": []}, {7}, "")


def test_what_is_not_karpathys_file_is_an_error(tmp_path):
    (tmp_path / "dataset_coco.json").write_text('{"images": [{"id": 1}]}')
    with pytest.raises(ValueError, match="it has no 'split'"):
        coco.karpathy_images(tmp_path / "dataset_coco.json", ["test"])


def crash(record):
    os._exit(9)


def test_a_killed_worker_is_an_error(root, command, monkeypatch, capsys):
    monkeypatch.setattr(coco, "write_semantic", crash)
    assert command(root, "--splits", "val", "--workers", "2") == 2
    assert "a worker process was killed" in capsys.readouterr().err


def test_counts_of_a_root_with_a_line_break_are_one_line(tmp_path, capsys):
    plan = Plan(tmp_path / "a\nb", check_counts=False)
    require_count(3, 4, plan, "images")
    assert capsys.readouterr().err == f"warning: 3 images under {tmp_path}/a\\nb, published are 4\n"
    with pytest.raises(ValueError, match="or give --no-check"):
        require_count(0, 4, plan, "images")
