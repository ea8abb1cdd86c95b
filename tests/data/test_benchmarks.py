"""The paper's benchmarks: class lists, and every loader on real samples or files of the exact format."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from openworldsam import cli
from openworldsam.data.datasets.benchmarks import (
    COMMANDS,
    EXPECTED_IMAGES,
    LABELS,
    PANOPTIC,
    find_pairs,
    read_classes,
)

run_check = cli.command("check")
CLASSES = {
    "ade20k_150_val": "ade20k_150",
    "ade20k_100_instance_val": "ade20k_instance_100",
    "ade20k_847_val": "ade20k_847",
    "pascal_voc_20_val": "pascal_voc_20",
    "pascal_context_59_val": "pascal_context_59",
    "pascal_context_459_val": "pascal_context_459",
    "sun_rgbd_37_val": "sun_rgbd_37",
    "scannet_20_panoptic_val": "scannet_20_panoptic",
    "scannet_40_val": "scannet_40",
    "bdd10k_19_val": "bdd10k_19",
    "bdd10k_40_panoptic_val": "bdd10k_panoptic_40",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def put_labels(root, name, *stars, labels=None, size=(6, 4)):
    """Write an image and its label image to the paths of a benchmark."""
    paths = [root / LABELS[name].images, root / LABELS[name].labels]
    for index, path in enumerate(paths):
        text = str(path)
        for star in stars:
            text = text.replace("*", star, 1)
        paths[index] = path = type(path)(text)
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(paths[0])
    Image.fromarray(np.full(size[::-1], 1, np.uint8) if labels is None else labels).save(paths[1])
    return paths


def found_names(name, index=0):
    """The classes of a record, by name, through the catalog."""
    vocabulary = MetadataCatalog.get(name).vocabulary
    return {vocabulary[s["category_id"]] for s in DatasetCatalog.get(name)[index].read_panoptic()[1]}


@pytest.mark.parametrize(("name", "file"), CLASSES.items())
def test_class_lists_equal_the_reference_lists(shared, name, file):
    facts = json.loads((shared / f"benchmarks/{file}.json").read_text())["classes"]
    assert MetadataCatalog.get(name).vocabulary == [c["name"].strip() for c in facts]
    table = LABELS | PANOPTIC
    classes = read_classes(table[name].classes if name in table else file)
    for fact, category in zip(facts, classes, strict=True):
        value = next(fact[key] for key in ("train_id", "dataset_id", "label_value", "id") if key in fact)
        assert category.id == value
        assert "isthing" not in fact or category.is_thing == bool(fact["isthing"])


def test_table_7():
    images = {name: EXPECTED_IMAGES[name] for name in EXPECTED_IMAGES if name.startswith(("ade", "pas", "sun", "sca"))}
    sizes = {name: (number, len(MetadataCatalog.get(name).vocabulary)) for name, number in images.items()}
    assert sizes == {
        "ade20k_150_val": (2000, 150), "ade20k_150_panoptic_val": (2000, 150), "ade20k_100_instance_val": (2000, 100),
        "ade20k_847_val": (2000, 847), "pascal_voc_20_val": (1449, 20), "pascal_context_59_val": (5105, 59),
        "pascal_context_459_val": (5105, 459), "sun_rgbd_37_val": (5050, 37), "scannet_20_val": (5436, 20),
        "scannet_20_panoptic_val": (5436, 20), "scannet_40_val": (5436, 40),
    }  # fmt: skip


def test_metadata_and_commands():
    for name in EXPECTED_IMAGES:
        metadata = MetadataCatalog.get(name)
        assert metadata.tasks and len(metadata.vocabulary) == len(metadata.is_thing)
    things = {name: sum(MetadataCatalog.get(name).is_thing) for name in PANOPTIC}
    assert list(things.values()) == [100, 18, 8, 8, 10]
    assert COMMANDS["bdd10k_40_panoptic_val"] == "openworldsam prepare bdd10k" and not COMMANDS["ade20k_150_val"]


def test_ade20k_150(shared, root):
    sample = shared / "data/ade20k_150_sample"
    link(sample / "images", root / "ADEChallengeData2016/images/validation")
    link(sample / "annotations", root / "ADEChallengeData2016/annotations/validation")
    records = DatasetCatalog.get("ade20k_150_val")
    assert [(r["height"], r["width"]) for r in records] == [(512, 683), (364, 500), (300, 400)]
    info = [line.split("\t") for line in (sample / "objectInfo150.txt").read_text().splitlines()[1:]]
    official = {row[-1].split(",")[0].strip() for row in info if int(row[0]) in (1, 2, 3, 5, 7, 10, 18)}
    assert {name.split(",")[0] for name in found_names("ade20k_150_val")} == official
    labels = np.asarray(Image.open(sample / "annotations/ADE_val_00000003.png")).astype(int)
    ids, segments = records[2].read_panoptic()
    assert (ids == labels).all() and sum(s["area"] for s in segments) == (labels > 0).sum()


def test_pascal_voc(shared, root):
    sample = shared / "data/voc_context_nyu_sample/VOC"
    link(sample, root / "VOCdevkit/VOC2012/JPEGImages")
    link(sample, root / "VOCdevkit/VOC2012/SegmentationClass")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("2010_005582\n2008_002536\n")
    assert found_names("pascal_voc_20_val", 0) == {"bottle", "person"}
    assert found_names("pascal_voc_20_val", 1) == {"dog", "sheep"}


def test_pascal_voc_prefers_the_augmented_labels(root):
    put_labels(root, "pascal_voc_20_val", "a")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("a\n")
    assert found_names("pascal_voc_20_val") == {"aeroplane"}
    (root / "VOCdevkit/VOC2012/SegmentationClassAug").mkdir()
    Image.fromarray(np.full((4, 6), 20, np.uint8)).save(root / "VOCdevkit/VOC2012/SegmentationClassAug/a.png")
    assert found_names("pascal_voc_20_val") == {"tvmonitor"}


def test_pascal_context_59(shared, root):
    sample = shared / "data/voc_context_nyu_sample"
    colours = {tuple(colour): index for index, colour in enumerate(np.load(sample / "cmap.npy").tolist())}
    pixels = np.asarray(Image.open(sample / "Context/2010_000682.png"))
    labels = np.apply_along_axis(lambda colour: colours[tuple(colour)], 2, pixels).astype(np.int64)
    labels = np.where(labels > 0, labels - 1, 255).astype(np.uint8)  # as `prepare.py pascal_context` codes it
    put_labels(root, "pascal_context_59_val", "2010_000682", labels=labels, size=labels.shape[::-1])
    (root / "VOCdevkit/VOC2010/ImageSets/Main").mkdir(parents=True)
    (root / "VOCdevkit/VOC2010/ImageSets/Main/val.txt").write_text("2010_000682\n")
    assert found_names("pascal_context_59_val") == {
        "bus", "car", "person", "building", "grass", "light", "road", "sidewalk", "sky", "tree",
    }  # fmt: skip


def test_scannet_on_nyu40_labels(shared, root):
    sample = shared / "data/voc_context_nyu_sample/NYU"
    values = np.asarray(Image.open(sample / "000834_mask.png")).astype(int)
    labels = np.where(values == 255, 0, values + 1).astype(np.uint8)  # the sample's ids start from 0
    put_labels(root, "scannet_40_val", "scene0011_00", "000000", labels=labels, size=labels.shape[::-1])
    put_labels(root, "scannet_40_val", "scene0001_00", "000000")  # a training scene
    (root / "scannet/scannetv2_val.txt").write_text("scene0011_00\n")
    all_names = {"wall", "floor", "cabinet", "door", "picture", "counter", "blinds", "refridgerator", "person", "sink"}
    assert found_names("scannet_40_val") == all_names | {"otherstructure", "otherprop"}
    assert len(DatasetCatalog.get("scannet_40_val")) == 1
    few = {"wall", "floor", "cabinet", "door", "picture", "counter", "refrigerator", "sink"}
    assert found_names("scannet_20_val") == few


@pytest.mark.parametrize(
    ("name", "stars", "values", "names"),
    [
        ("sun_rgbd_37_val", ("000001",), (0, 1, 37), {"wall", "bag"}),
        ("cityscapes_19_val", ("ulm", "ulm_000000_000019"), (0, 7, 33), {"road", "bicycle"}),
        ("bdd10k_19_val", ("7d06fefd-f7be05a6",), (255, 0, 18), {"road", "bicycle"}),
    ],
)
def test_other_codings(root, name, stars, values, names, caplog):
    labels = np.repeat(np.array(values, np.uint8), 8).reshape(4, 6)
    put_labels(root, name, *stars, labels=labels)
    assert found_names(name) == names
    assert f"{name} has 1 images, {EXPECTED_IMAGES[name]} are published" in caplog.text


@pytest.mark.parametrize(
    ("name", "stars", "value"),
    [
        ("ade20k_150_val", ("a",), 151),
        ("sun_rgbd_37_val", ("1",), 38),
        ("cityscapes_19_val", ("a", "b"), 34),
        ("bdd10k_19_val", ("a",), 19),
    ],
)
def test_unknown_labels_are_named(root, name, stars, value):
    put_labels(root, name, *stars, labels=np.full((4, 6), value, np.uint8))
    with pytest.raises(ValueError, match=f"has the label {value} "):
        DatasetCatalog.get(name)[0].read_panoptic()


def test_suffixes_in_upper_case_are_found_and_hidden_files_of_macos_are_not(root):
    folder = root / "ADEChallengeData2016/images/validation"
    folder.mkdir(parents=True)
    for name in ("b.JPG", "a.jpg", "c.Jpg", "._a.jpg", "d.png"):
        (folder / name).touch()
    pairs = find_pairs(LABELS["ade20k_150_val"], root)
    assert [(image.name, labels.name) for image, labels in pairs] == [
        ("a.jpg", "a.png"), ("b.JPG", "b.png"), ("c.Jpg", "c.png")
    ]  # fmt: skip


def test_pairs_of_listed_images_need_not_exist(root):
    benchmark = LABELS["pascal_voc_20_val"]
    with pytest.raises(FileNotFoundError, match=r"val\.txt not found\. get it"):
        find_pairs(benchmark, root, "get it")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (root / benchmark.listed).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"val\.txt is no text"):
        find_pairs(benchmark, root)
    (root / benchmark.listed).write_text("a\nb/c\n")
    with pytest.raises(ValueError, match=r"val\.txt has a line that is no name: it gives .*b/c\.jpg"):
        find_pairs(benchmark, root)
    (root / benchmark.listed).write_text("\ufeffa\nb\na\n", encoding="utf-8")  # with the mark that Windows writes
    assert [image.name for image, _ in find_pairs(benchmark, root)] == ["a.jpg", "b.jpg"]
    with pytest.raises(FileNotFoundError, match=r"2 of 2 files .*README"):
        DatasetCatalog.get("pascal_voc_20_val")


def test_check_names_missing_files_and_the_command_for_them(exit_status, shared, root, capsys, monkeypatch):
    assert exit_status(run_check) == 1
    text = capsys.readouterr().out
    assert text.count(" missing\n") == len(EXPECTED_IMAGES)
    assert all(command in text for command in COMMANDS.values())
    assert text.count("datasets/README.md says how to get") == len(EXPECTED_IMAGES)
    sample = shared / "data/coco_panoptic_sample"
    link(sample / "images", root / "coco/val2017")
    link(sample / "panoptic", root / "coco/panoptic_val2017")
    link(sample / "panoptic.json", root / "coco/annotations/panoptic_val2017.json")
    coco = "coco_2017_val_panoptic_openworldsam"
    assert exit_status(run_check, coco) == 1 and "3 images, published are 5000" in capsys.readouterr().out
    monkeypatch.setitem(EXPECTED_IMAGES, coco, 3)
    assert exit_status(run_check, coco, "--read", "--workers", "1") == 0
    assert exit_status(run_check, "cocoa") == 2 and "unknown datasets ['cocoa']" in capsys.readouterr().err


def test_check_reads_labels(exit_status, root, capsys, monkeypatch):
    monkeypatch.setitem(EXPECTED_IMAGES, "bdd10k_19_val", 5)
    for index in range(5):
        _, labels = put_labels(root, "bdd10k_19_val", str(index), labels=np.full((4, 6), 30, np.uint8))
    assert exit_status(run_check, "bdd10k_19_val") == 0
    labels.unlink()
    assert exit_status(run_check, "bdd10k_19_val", "--read", "--workers", "1") == 1
    text = capsys.readouterr().out
    assert "1 of 5 files are missing, such as" in text and "has the label 30" in text and "and 2 more images" in text


def test_check_of_a_custom_dataset(exit_status, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "own.yaml").write_text("{name: own_check, images: images, labels: images, classes: [a]}")
    try:
        assert exit_status(run_check, "--own", str(tmp_path / "own.yaml")) == 1
        assert "own.yaml has no images" in capsys.readouterr().out
        assert exit_status(run_check, "--own", str(tmp_path / "none.yaml")) == 2
    finally:
        DatasetCatalog.remove("own_check")
        MetadataCatalog.pop("own_check", None)
