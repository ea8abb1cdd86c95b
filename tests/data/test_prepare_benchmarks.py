"""datasets/prepare.py for the benchmarks, on real samples or files of the publishers' exact format."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from openworldsam.data.check import read_record
from openworldsam.data.datasets import benchmarks
from openworldsam.data.datasets.benchmarks import read_classes
from openworldsam.data.datasets.referring import REFERRING
from openworldsam.data.prepare import coco
from openworldsam.data.prepare.command import FILTERED, PREPARATIONS
from openworldsam.data.prepare.labels import ade20k_classes, read_scannet_table
from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.labels import read_labels

SIZE = (6, 4)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(prepare):
    """Exit status of the command for a benchmark."""
    return lambda name, root, *args, check=False: prepare(
        name, "--root", root, "--workers", 1, *([] if check else ["--no-check"]), *args
    )


def write(path, pixels=None, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", SIZE) if pixels is None else Image.fromarray(np.asarray(pixels, dtype))
    image.save(path)
    return path


def rows(*values):
    """A map of 4 x 6 pixels, one value a row; of channels if the values are tuples."""
    return np.repeat(np.array(values)[:, None], 6, axis=1)


def summary(name, index=0):
    """Name, whether a crowd, and area of each segment of a registered record; the map agrees."""
    record = DatasetCatalog.get(name)[index]
    assert not read_record(record)[0]
    ids, segments = record.read_panoptic()
    vocabulary = MetadataCatalog.get(name).vocabulary
    return sorted((vocabulary[s["category_id"]], bool(s["iscrowd"]), int((ids == s["id"]).sum())) for s in segments)


def areas(name, index=0):
    """Class and json's area of each segment of a registered record."""
    vocabulary = MetadataCatalog.get(name).vocabulary
    return sorted((vocabulary[s["category_id"]], s["area"]) for s in DatasetCatalog.get(name)[index]["segments_info"])


def ade20k(root, stem="ADE_val_00000001", labels=(1, 13, 13, 0), objects=((0, 0, 0), (4, 1, 0), (4, 2, 0), (0, 0, 0))):
    folder = root / "ADEChallengeData2016"
    write(folder / f"images/validation/{stem}.jpg")
    write(folder / f"annotations/validation/{stem}.png", rows(*labels))
    write(folder / f"annotations_instance/validation/{stem}.png", rows(*objects))


@pytest.mark.parametrize("labels_lie_as", ["seen", "stored"])
def test_preparation_and_reading_turn_images_by_one_rule(run, root, capsys, labels_lie_as):
    """What is prepared can be read, and what cannot be read is not prepared."""
    ade20k(root)
    exif = Image.Exif()
    exif[0x0112] = 6
    size = SIZE[::-1] if labels_lie_as == "seen" else SIZE
    image = root / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"
    Image.new("RGB", size).save(image, exif=exif)
    seen = labels_lie_as == "seen"
    assert run("ade20k_150", root) == (0 if seen else 2)
    assert "is 6 x 4, its image is 4 x 6" in capsys.readouterr().err or seen
    problems = [read_record(record)[0] for record in DatasetCatalog.get("ade20k_150_val")]
    assert problems == [None] if seen else "is 6 x 4, its image is 4 x 6; does the orientation in EXIF" in problems[0]
    if seen:
        assert len(summary("ade20k_150_panoptic_val")) == 3


def test_ade20k_150(run, root, capsys):
    ade20k(root)
    (root / "ADEChallengeData2016/images/validation/._ADE_val_00000001.jpg").touch()  # as macOS adds them
    ade20k(root, "ADE_val_00000002", labels=(1, 1, 13, 0), objects=((9, 1, 0), *[(0, 0, 0)] * 3))
    assert run("ade20k_150", root) == 0
    text = capsys.readouterr()
    assert "2 images, 5 segments" in text.out and "2 images, 3 objects" in text.out and "published are 2000" in text.err
    assert summary("ade20k_150_panoptic_val") == [("person", False, 6), ("person", False, 6), ("wall", False, 6)]
    # an object lies over stuff, whose area stays; a person that is no object is void
    assert summary("ade20k_150_panoptic_val", 1) == [("car", False, 6), ("wall", False, 6)]
    assert areas("ade20k_150_panoptic_val", 1) == [("car", 6), ("wall", 12)]
    assert summary("ade20k_100_instance_val") == [("person", False, 6), ("person", False, 6)]
    assert summary("ade20k_100_instance_val", 1) == [("car", False, 6)]
    content = json.loads((root / "ADEChallengeData2016/ade20k_instance_val.json").read_text())
    assert content["annotations"][0]["bbox"] == [0, 1, 6, 1] and len(content["categories"]) == 100
    assert run("ade20k_150", root) == 0 and capsys.readouterr().out.count("already there") == 2


def test_ade20k_keeps_stuff_that_is_covered(run, root):
    """As Mask2Former's script, which pastes stuff first: wall 6 below a car and a pixel row of no object (green 0)."""
    ade20k(root, labels=(1, 2, 2, 3), objects=((9, 1, 0), (9, 1, 0), (9, 0, 0), (0, 0, 0)))
    assert run("ade20k_150", root) == 0
    name = "ade20k_150_panoptic_val"
    assert areas(name) == [("building", 12), ("car", 12), ("sky", 6), ("wall", 6)]
    assert summary(name)[-1] == ("wall", False, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": (151, 1, 1, 1)}, "annotations/validation/.*00001.png has the class 151, known are 0 to 150"),
        ({"objects": [(101, 1, 0)] * 4}, "annotations_instance/.* has the class 101, known are 0 to 100"),
        ({"labels": (1, 1)}, "is 6 x 2, .* is 6 x 4"),
        ({"labels": (1, 1), "objects": [(0, 0, 0)] * 2}, "is 6 x 2, its image is 6 x 4"),
    ],
)
def test_bad_ade20k_makes_no_json(run, root, capsys, change, message):
    ade20k(root, **change)
    assert run("ade20k_150", root) == 2
    error = capsys.readouterr().err
    assert "1 of 1 images" in error
    assert re.search(message, error) and not (root / "ADEChallengeData2016/ade20k_panoptic_val.json").exists()


def test_counts_are_checked(run, root, capsys):
    ade20k(root)
    assert run("ade20k_150", root, check=True) == 2
    assert "1 images of ade20k_150_panoptic_val under" in capsys.readouterr().err
    for folder in ("leftImg8bit", "gtFine"):
        (root / "cityscapes" / folder / "val").mkdir(parents=True)
    assert run("cityscapes", root) == 2, "nothing at all is an error in any case"
    assert "0 images of cityscapes_19_panoptic_val" in capsys.readouterr().err


def test_several_processes_and_an_interruption(run, root, monkeypatch, capsys):
    for index in range(3):
        ade20k(root, f"ADE_val_{index:08d}")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("openworldsam.data.prepare.panoptic.save_json", stop)
        assert run("ade20k_150", root) == 130
    assert "the same command again" in capsys.readouterr().err
    assert run("ade20k_150", root, "--workers", "2") == 0
    assert len(DatasetCatalog.get("ade20k_150_panoptic_val")) == 3


def test_cityscapes(run, root):
    folder, stem = root / "cityscapes", "ulm_000000_000019"
    write(folder / f"leftImg8bit/val/ulm/{stem}_leftImg8bit.png")
    # road, a group of persons, the second car, a licence plate's neighbour that is not evaluated
    path = folder / f"gtFine/val/ulm/{stem}_gtFine_instanceIds.png"
    write(path, rows(7, 24, 26_001, 4), np.uint16)
    assert run("cityscapes", root) == 0
    assert summary("cityscapes_19_panoptic_val") == [("car", False, 6), ("person", True, 6), ("road", False, 6)]
    assert DatasetCatalog.get("cityscapes_19_panoptic_val")[0]["file_name"].endswith(f"val/ulm/{stem}_leftImg8bit.png")
    (folder / "panoptic_val.json").unlink()
    write(path, rows(7, 24, 34_001, 4), np.uint16)
    assert run("cityscapes", root) == 2


def test_cityscapes_is_what_its_own_script_makes(run, root):
    """The segments, areas, boxes and PNGs of createPanopticImgs; its files take the place of ours."""
    script = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    folder, generator = root / "cityscapes", np.random.default_rng(0)
    for split, stem in (("val", "ulm_000000_000019"), ("train", "aachen_000001_000019")):
        city = stem.split("_")[0]
        labels = generator.integers(0, 34, (4, 6))
        values = np.where(generator.random((4, 6)) < 0.5, labels, labels * 1000 + generator.integers(0, 3, (4, 6)))
        write(folder / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
        write(folder / f"gtFine/{split}/{city}/{stem}_gtFine_instanceIds.png", values, np.uint16)
    assert run("cityscapes", root) == 0
    (root / "official").mkdir()
    script.convert2panoptic(str(folder / "gtFine"), str(root / "official"), setNames=["val", "train"])
    for split in ("val", "train"):
        name, files = f"cityscapes_19_panoptic_{split}", folder / f"panoptic_{split}.json"
        ours, (record,) = json.loads(files.read_text()), DatasetCatalog.get(name)
        official = json.loads((root / f"official/cityscapes_panoptic_{split}.json").read_text())
        assert ours["annotations"][0]["segments_info"] == official["annotations"][0]["segments_info"]
        assert any(s["iscrowd"] for s in record["segments_info"])
        ids = record.read_panoptic()[0]
        for path in (files, files.with_suffix("")):
            path.rename(path.with_name(f"ours_{path.name}"))
            path.symlink_to(root / "official" / path.name.replace("panoptic", "cityscapes_panoptic"))
        (other,) = DatasetCatalog.get(name)
        assert (other.read_panoptic()[0] == ids).all() and other["segments_info"] == record["segments_info"]
        assert other["file_name"] == record["file_name"]


def test_bdd10k(run, root, capsys):
    folder = root / "bdd100k"
    write(folder / "images/10k/val/a.jpg")
    path = folder / "labels/pan_seg/bitmasks/val/a.png"
    # two regions of the road, car 258, and a crowd of persons
    write(path, rows((7, 0, 0, 1), (7, 0, 0, 2), (35, 12, 1, 2), (31, 2, 0, 3)))
    assert run("bdd10k", root) == 0
    assert summary("bdd10k_40_panoptic_val") == [("car", False, 6), ("person", True, 6), ("road", False, 12)]
    (folder / "panoptic_val.json").unlink()
    for pixels, message in ((rows(*[(41, 0, 0, 0)] * 4), "class 41"), (rows(1, 1, 1, 1), "four channels")):
        write(path, pixels)
        assert run("bdd10k", root) == 2 and message in capsys.readouterr().err


def scannet(root, labels, instances, names=("label", "instance")):
    scene = root / "scannet/scannet_frames_25k/scene0011_00"
    write(scene / "color/000100.jpg")
    write(scene / f"{names[0]}/000100.png", labels, np.uint16)
    write(scene / f"{names[1]}/000100.png", instances, np.uint16)
    (root / "scannet/scannetv2_val.txt").write_text("scene0011_00\n")


def test_scannet(run, root, capsys):
    # a piece of wall without a number, another with one; a chair; a pillow, which is none of the 20
    scannet(root, rows(1, 1, 5, 18), rows(1, 1001, 5002, 18_001))
    assert run("scannet", root) == 0
    assert summary("scannet_20_panoptic_val") == [("chair", False, 6), ("wall", False, 6), ("wall", False, 6)]
    assert summary("scannet_20_val") == [("chair", False, 6), ("wall", False, 12)]
    record = DatasetCatalog.get("scannet_20_panoptic_val")[0]
    assert record["pan_seg_file_name"].endswith("scannet_panoptic_val/scene0011_00__000100.png")
    assert [s["id"] for s in record["segments_info"]] == [1, 1001, 5002], "ids are those of ScanNet's script"
    (root / "scannet/scannet_panoptic_val.json").unlink()
    for value in (41, 41_001):
        scannet(root, rows(1, 1, 1, 1), rows(1, value, 0, 0))
        assert run("scannet", root) == 2 and "class 41" in capsys.readouterr().err


def test_scannet_from_raw_labels(run, shared, root, capsys):
    table = shared / "data/labels/scannetv2-labels.combined.tsv"
    scannet(root, rows(1, 2, 0, 3), rows(1, 2, 0, 0), ("label-filt", "instance-filt"))
    assert run("scannet", root, "--raw-table", str(table)) == 0
    scene = root / "scannet/scannet_frames_25k/scene0011_00"
    assert read_labels(scene / "label/000100.png")[:, 0].tolist() == [1, 5, 0, 2]
    # objects are numbered within their class, and so is what is no object
    assert read_labels(scene / "instance/000100.png")[:, 0].tolist() == [1001, 5001, 1, 1]
    assert summary("scannet_20_panoptic_val") == [("chair", False, 6), ("wall", False, 6), ("wall", False, 12)]
    (scene / "label/000100.png").unlink()
    scannet(root, rows(1, 2, 0, 65_000), rows(1, 2, 0, 0), ("label-filt", "instance-filt"))
    assert run("scannet", root, "--raw-table", str(table)) == 2 and "raw ids [65000]" in capsys.readouterr().err


def test_scannets_table(shared, tmp_path):
    table = read_scannet_table(shared / "data/labels/scannetv2-labels.combined.tsv")
    assert (table[0], table[1], table[2], table[22]) == (0, 1, 5, 23) and set(table.values()) <= set(range(41))
    (tmp_path / "a.tsv").write_text("id\tname\n1\twall\n")
    with pytest.raises(ValueError, match=r"a\.tsv is not scannetv2-labels"):
        read_scannet_table(tmp_path / "a.tsv")


def test_ade20k_847_coding_on_real_files(shared):
    """What a real json calls each object is the class that the colours give."""
    (path, *_) = sorted((shared / "data/ade20k_full_sample").rglob("*_seg.png"))
    colours = read_image(path)
    index = colours[..., 0].astype(int) // 10 * 256 + colours[..., 1]
    classes = ade20k_classes(colours)
    text = path.with_name(path.name.replace("_seg.png", ".json")).read_text("latin1")
    objects = json.loads(text)["annotation"]["object"]
    names = [c.name for c in read_classes("ade20k_847")]
    checked = {
        entry["name"]
        for entry in objects
        if entry["name"] in names and (index == entry["name_ndx"]).any()
        for value in [np.unique(classes[index == entry["name_ndx"]]).tolist()]
        if value == [names.index(entry["name"])]
    }
    assert {"sky", "tree", "building, edifice", "road, route"} <= checked and len(checked) >= 12
    assert (classes[index == 0] == 65_535).all()


def test_ade20k_847(run, shared, root, capsys):
    source = sorted((shared / "data/ade20k_full_sample").rglob("*_seg.png"))[0]
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    folder.mkdir(parents=True)
    stem = source.name.removesuffix("_seg.png")
    (folder / "ADE_val_00000001.jpg").symlink_to(source.with_name(f"{stem}.jpg"))
    (folder / "ADE_val_00000001_seg.png").symlink_to(source)
    assert run("ade20k_847", root) == 0 and "1 images of ADE20K-847" in capsys.readouterr().out
    (record,) = DatasetCatalog.get("ade20k_847_val")
    assert min(record["height"], record["width"]) == 512
    assert {"sky", "tree"} <= {name for name, *_ in summary("ade20k_847_val")}
    label = Path(record["sem_seg_file_name"])
    assert Image.open(label).mode == "I;16"
    time = label.stat().st_mtime_ns
    assert run("ade20k_847", root) == 0 and label.stat().st_mtime_ns == time
    label.unlink()
    assert run("ade20k_847", root, "--short-side", "0") == 0
    assert Image.open(label).size == Image.open(source).size
    label.unlink()
    (folder / "ADE_val_00000001_seg.png").unlink()
    assert run("ade20k_847", root) == 2 and "not found" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(530, 771), (771, 530), (512, 700), (300, 900)])
def test_ade20k_847_is_resampled_as_published(run, root, size):
    """By OpenCV, linear and nearest, to a short side of 512; the JPEG has Pillow's default quality."""
    width, height = size
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    colours = np.zeros_like(pixels)
    colours[..., 0] = 10 * generator.integers(0, 12, (height, width))
    colours[..., 1] = generator.integers(0, 256, (height, width))
    source = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_00000001.jpg"
    write(source, pixels)
    write(source.with_name("ADE_val_00000001_seg.png"), colours)
    assert run("ade20k_847", root) == 0
    (record,) = DatasetCatalog.get("ade20k_847_val")
    image, labels = read_image(source), ade20k_classes(colours)
    if min(size) > 512:
        scaled = (512, round(height / width * 512)) if width < height else (round(width / height * 512), 512)
        image = cv2.resize(image, scaled, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, scaled, interpolation=cv2.INTER_NEAREST)
    assert (read_labels(record["sem_seg_file_name"]) == labels).all()
    Image.fromarray(image).save(root / "expected.jpg")
    assert Path(record["file_name"]).read_bytes() == (root / "expected.jpg").read_bytes()


def context(root, labels, name="2008_000002"):
    folder = root / "VOCdevkit/VOC2010"
    write(folder / f"JPEGImages/{name}.jpg")
    for path in (folder / "ImageSets/Main", folder / "trainval"):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main/val.txt").write_text(f"{name}\n")
    scipy.io.savemat(folder / f"trainval/{name}.mat", {"LabelMap": np.asarray(labels, np.uint16)})


def test_pascal_context(run, root, capsys):
    # by the official numbers of the 459: aeroplane 2, accordion 1, wood 458, void
    context(root, rows(2, 1, 458, 0))
    assert run("pascal_context", root) == 0
    assert summary("pascal_context_59_val") == [("aeroplane", False, 6), ("wood", False, 6)]
    many = summary("pascal_context_459_val")
    assert many == [("accordion", False, 6), ("aeroplane", False, 6), ("wood", False, 6)]
    for folder in ("pc59_val", "pc459_val"):
        for path in (root / "VOCdevkit/VOC2010/annotations_detectron2" / folder).iterdir():
            path.unlink()
    context(root, rows(2, 1, 460, 0))
    assert run("pascal_context", root) == 2 and "known are 0 to 459" in capsys.readouterr().err
    (root / "VOCdevkit/VOC2010/trainval/2008_000002.mat").write_bytes(b"cut short")
    assert run("pascal_context", root) == 2 and "is no LabelMap" in capsys.readouterr().err
    (root / "VOCdevkit/VOC2010/trainval/2008_000002.mat").unlink()
    assert run("pascal_context", root) == 2 and "not found" in capsys.readouterr().err


def test_the_59_have_the_official_numbers_among_the_459():
    many = [c.name for c in read_classes("pascal_context_459")]
    assert sorted(many.index(c.name) + 1 for c in read_classes("pascal_context_59")) == [
        2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
        162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368,
        397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
    ]  # fmt: skip


def sun(root, labels):
    """The official archives, unpacked, of one training and two test images."""
    h5py = pytest.importorskip("h5py")
    folder = root / "sun_rgbd"
    names = [f"SUNRGBD/kv1/NYUdata/NYU{index:04d}" for index in range(3)]
    for index, name in enumerate(names):
        write(folder / name / f"image/NYU{index:04d}.jpg")
    toolbox = folder / "SUNRGBDtoolbox"
    for path in ("traintestSUNRGBD", "Metadata"):
        (toolbox / path).mkdir(parents=True, exist_ok=True)
    test = np.array([f"/n/fs/sun3d/data/{name}" for name in (names[2], names[0])], object)
    scipy.io.savemat(toolbox / "traintestSUNRGBD/allsplit.mat", {"alltest": test})
    meta = np.zeros((1, 3), [("sequenceName", object)])
    meta["sequenceName"][0] = names
    scipy.io.savemat(toolbox / "Metadata/SUNRGBDMeta.mat", {"SUNRGBDMeta": meta})
    with h5py.File(toolbox / "Metadata/SUNRGBD2Dseg.mat", "w") as file:
        cells = file.create_dataset("SUNRGBD2Dseg/seglabel", (3, 1), h5py.ref_dtype)
        for index in range(3):
            cells[index, 0] = file.create_dataset(f"#refs#/{index}", data=np.asarray(labels[index]).T).ref


def test_sun_rgbd(run, root, capsys):
    sun(root, [rows(1, 1, 1, 0), rows(2, 2, 2, 2), rows(37, 0, 0, 0)])
    assert run("sun_rgbd", root, "--workers", "2") == 0 and "2 images of SUN RGB-D" in capsys.readouterr().out
    assert summary("sun_rgbd_37_val", 0) == [("bag", False, 6)]
    assert summary("sun_rgbd_37_val", 1) == [("wall", False, 18)]
    for path in (root / "sun_rgbd/label37/test").iterdir():
        path.unlink()
    sun(root, [rows(1, 1, 1, 0), rows(2, 2, 2, 2), rows(38, 0, 0, 0)])
    assert run("sun_rgbd", root) == 2
    assert re.search("1 of 2 images of SUN RGB-D .* are 0 to 38, known are 0 to 37", capsys.readouterr().err)


def test_sun_rgbd_without_its_toolbox(run, root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h5py", sys)
    for folder in ("SUNRGBD", "SUNRGBDtoolbox"):
        (root / "sun_rgbd" / folder).mkdir(parents=True)
    assert run("sun_rgbd", root) == 2
    assert re.search(r"allsplit\.mat not found\. It is in SUNRGBDtoolbox\.zip", capsys.readouterr().err)


def test_sun_rgbd_without_h5py(run, root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for folder in ("SUNRGBD", "SUNRGBDtoolbox"):
        (root / "sun_rgbd" / folder).mkdir(parents=True)
    assert run("sun_rgbd", root) == 2 and "pip install h5py" in capsys.readouterr().err


def test_every_command_exists():
    commands = {tuple(command.split()[1:]) for command in benchmarks.COMMANDS.values() if command}
    assert commands == {("prepare", name) for name in PREPARATIONS.keys() - {"coco"}}
    for name, preparation in PREPARATIONS.items():
        module, function, *argument = preparation.make.split(":")
        assert callable(getattr(import_module(f"openworldsam.data.prepare.{module}"), function))
        assert argument == ([name] if name in REFERRING else [])
    for name, benchmark in REFERRING.items():
        assert f"ROOT/{benchmark.references} " in PREPARATIONS[name].files
        assert f"-> ROOT/{benchmark.json_file('*')}\n" in PREPARATIONS[name].files
    assert PREPARATIONS["coco"].options["--splits"]["choices"] == list(coco.SPLITS)
    assert FILTERED == coco.FILTERED


@pytest.mark.parametrize("name", PREPARATIONS)
def test_missing_sources_are_named_together_and_before_torch_is_imported(name, tmp_path):
    program = f"import sys\nfrom openworldsam import cli\ntry: cli.main(['prepare', {name!r}, '--root', 'nowhere'])\n"
    program += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    named = r"error: nowhere/\S+( and nowhere/\S+)* not found\. datasets/README\.md says how to get (it|them)\n"
    assert done.returncode == 2 and re.fullmatch(named, done.stderr)
