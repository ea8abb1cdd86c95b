"""Custom datasets: a description of a few lines, and every mistake in it."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from openworldsam.data.check import check_dataset
from openworldsam.data.datasets import custom, register_datasets
from openworldsam.data.loader import training_dataset
from openworldsam.engine.checks import check_evaluation
from openworldsam.evaluation.benchmark import evaluate

REEF = {"name": "reef", "images": "images", "labels": "labels", "classes": ["sand", "fish"], "ignore": 255}
PANOPTIC = {"name": "reef", "images": "images", "panoptic": "panoptic.json", "panoptic_images": "panoptic"}
INSTANCES = {"name": "reef", "images": "images", "instances": "instances.json"}


@pytest.fixture
def reef(tmp_path):
    """Two images of 20 x 16 pixels, sand with a fish in it, annotated in all three ways."""
    labels = np.zeros((16, 20), np.uint8)
    labels[4:8, 5:10], labels[0] = 1, 255
    for folder in ("images", "labels/day", "images/day", "panoptic"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name in ("a", "day/b"):
        Image.fromarray(generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(tmp_path / f"images/{name}.jpg")
        Image.fromarray(labels).save(tmp_path / f"labels/{name}.png")
    Image.fromarray(id2rgb(labels.astype(int) % 255 + 1)).save(tmp_path / "panoptic/a.png")
    image = {"id": 1, "file_name": "a.jpg", "height": 16, "width": 20}
    categories = [{"id": 3, "name": "sand", "isthing": 0}, {"id": 8, "name": "fish", "isthing": 1}]
    segments = [{"id": i, "category_id": c, "area": 1, "iscrowd": 0} for i, c in ((1, 3), (2, 8))]
    panoptic = [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]
    box = [[5, 4, 10, 4, 10, 8, 5, 8]]
    instances = [{"id": 1, "image_id": 1, "category_id": 8, "segmentation": box, "iscrowd": 0}]
    for kind, annotations in (("panoptic", panoptic), ("instances", instances)):
        content = {"images": [image], "annotations": annotations, "categories": categories}
        (tmp_path / f"{kind}.json").write_text(json.dumps(content))
    yield tmp_path
    for name in {"reef", "reef_train"} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def describe(folder, base=REEF, without=(), **changes):
    content = {key: value for key, value in {**base, **changes}.items() if key not in without}
    path = Path(folder, f"{content.get('name', 'reef')}.yaml")
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("base", "tasks"),
    [(REEF, {"semantic"}), (PANOPTIC, {"panoptic", "instance", "semantic"}), (INSTANCES, {"instance"})],
)
def test_evaluated_by_the_tiny_model(reef, build, tiny_cfg, base, tasks):
    tiny_cfg.merge_from_list(["DATASETS.OWN", [str(describe(reef, base))], "DATASETS.TEST", ("reef",)])
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    register_datasets(tiny_cfg)
    result = evaluate(tiny_cfg, build())["reef"]
    assert result["images"] == (2 if base is REEF else 1) and not result["skipped"]
    assert tasks <= result.keys() and "fish" in result[min(tasks)]["per_class"]
    assert MetadataCatalog.get("reef").vocabulary == ["sand", "fish"]


def test_trained_on(reef, tiny_cfg):
    tiny_cfg.merge_from_list(["DATASETS.OWN", [str(describe(reef))], "DATASETS.TRAIN", ["reef"]])
    register_datasets(tiny_cfg)
    dataset = training_dataset(tiny_cfg)
    assert set(dataset[0]["prompts"]) == {"sand", "fish"} and dataset[0]["file_name"] != dataset[1]["file_name"]


def test_values_names_and_things(reef):
    path = describe(reef, classes={1: "fish", 0: " sand "}, things=["fish"], ignore=[255, 9])
    custom.register(path)
    metadata, record = MetadataCatalog.get("reef"), DatasetCatalog.get("reef")[1]
    assert metadata.vocabulary == ["sand", "fish"] and metadata.is_thing == [False, True]
    assert record["file_name"] == str(reef / "images/day/b.jpg")
    assert [(s["category_id"], s["area"]) for s in record.read_panoptic()[1]] == [(0, 280), (1, 20)]


def test_a_json_may_be_renamed(reef):
    custom.register(describe(reef, PANOPTIC, classes={8: "clown fish"}, things=["clown fish", "sand"]))
    metadata = MetadataCatalog.get("reef")
    assert metadata.vocabulary == ["sand", "clown fish"] and metadata.is_thing == [True, True]


def roboflow(name="fish"):
    """The categories of a project: its root, and two classes, of which the first may have the root's name."""
    root = {"id": 0, "name": "fish", "supercategory": "none"}
    return [root, *({"id": i, "name": n, "supercategory": "fish"} for i, n in ((8, name), (3, "sand")))]


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_root_of_roboflow_is_no_class_if_it_has_the_name_of_one(reef):
    rewrite(reef / "instances.json", categories=roboflow())
    custom.register(describe(reef, INSTANCES))
    assert MetadataCatalog.get("reef").vocabulary == ["fish", "sand"]
    assert MetadataCatalog.get("reef").category_ids == [8, 3]
    rewrite(reef / "instances.json", categories=roboflow()[::-1])
    assert [i["category_id"] for i in DatasetCatalog.get("reef")[0]["instances"]] == [0]
    rewrite(reef / "instances.json", categories=roboflow("cod"))  # a name of its own may be that of a class
    custom.register(describe(reef, INSTANCES))
    assert MetadataCatalog.get("reef").vocabulary == ["fish", "cod", "sand"]


def test_a_root_that_is_used_is_a_class_and_needs_another_name(reef):
    rewrite(reef / "instances.json", categories=roboflow())
    used = json.loads((reef / "instances.json").read_text())["annotations"]
    rewrite(reef / "instances.json", annotations=[*used, {**used[0], "category_id": 0}])
    with pytest.raises(ValueError, match="several categories have the same name: fish"):
        custom.register(describe(reef, INSTANCES))
    custom.register(describe(reef, INSTANCES, classes={0: "any fish"}))
    assert MetadataCatalog.get("reef").vocabulary == ["any fish", "fish", "sand"]


def test_names_are_compared_after_they_are_changed(reef):
    twins = [{"id": 3, "name": "fish", "isthing": 0}, {"id": 8, "name": "fish", "isthing": 1}]
    rewrite(reef / "panoptic.json", categories=twins)
    custom.register(describe(reef, PANOPTIC, classes={3: "sand"}))
    assert MetadataCatalog.get("reef").vocabulary == ["sand", "fish"]
    twins[0]["name"] = "sand"
    rewrite(reef / "panoptic.json", categories=twins)
    with pytest.raises(ValueError, match="several categories have the same name: fish"):
        custom.register(describe(reef, PANOPTIC, classes={3: "fish"}))


def test_a_description_may_be_json_and_registered_again(reef, tiny_cfg):
    path = reef / "reef.json"
    path.write_text(json.dumps(REEF))
    tiny_cfg.DATASETS.OWN = [str(path)]
    register_datasets(tiny_cfg)
    path.write_text(json.dumps({**REEF, "classes": ["mud", "fish"]}))
    register_datasets(tiny_cfg)
    assert MetadataCatalog.get("reef").vocabulary == ["mud", "fish"]
    with pytest.raises(ValueError, match="another dataset named 'reef'"):
        custom.register(describe(reef))


def test_json_has_texts_as_keys_and_may_have_tabs(reef):
    for text in (json.dumps({**REEF, "classes": {"1": "fish", "0": "sand"}}, indent="\t"), "\ufeff" + json.dumps(REEF)):
        (reef / "reef.json").write_text(text, encoding="utf-8")
        custom.register(reef / "reef.json")
        assert MetadataCatalog.get("reef").vocabulary == ["sand", "fish"] and len(DatasetCatalog.get("reef")) == 2
    with pytest.raises(ValueError, match="a label value twice, as a number and as a text"):
        custom.register(describe(reef, classes={1: "fish", "1": "sand"}))


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_numbers_may_be_written_as_texts(reef, suffix):
    path = (reef / "reef.any").with_suffix(suffix)
    path.write_text(json.dumps({**REEF, "classes": {"1": "fish", "0": "sand"}, "ignore": ["255", 9]}))
    assert custom.read_description(path).ignored == (255, 9)
    path.write_text(json.dumps({**REEF, "ignore": "255"}))
    custom.register(path)
    assert [record.read_panoptic()[1][0]["area"] for record in DatasetCatalog.get("reef")] == [280, 280]


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_key_twice_loses_no_class(reef, suffix):
    path = (reef / "reef.any").with_suffix(suffix)
    path.write_text(json.dumps({**REEF, "classes": {"0": "sand", "1": "fish"}}).replace('"1"', '"0"'))
    with pytest.raises(ValueError, match="the key '0' twice"):
        custom.register(path)


@pytest.mark.parametrize("base", [PANOPTIC, INSTANCES])
def test_names_of_images_may_be_those_of_windows(reef, base):
    path = reef / ("panoptic.json" if base is PANOPTIC else "instances.json")
    rewrite(path, images=[{"id": 1, "file_name": "day\\b.jpg", "height": 16, "width": 20}])
    custom.register(describe(reef, base))
    assert DatasetCatalog.get("reef")[0]["file_name"] == str(reef / "images/day/b.jpg")


def test_things_may_take_the_place_of_isthing(reef):
    rewrite(reef / "panoptic.json", categories=[{"id": 3, "name": " sand"}, {"id": 8, "name": "fish"}])
    with pytest.raises(ValueError, match="it has no 'isthing'"):
        custom.register(describe(reef, PANOPTIC))
    custom.register(describe(reef, PANOPTIC, things=["fish"]))
    assert MetadataCatalog.get("reef").vocabulary == ["sand", "fish"]
    assert MetadataCatalog.get("reef").is_thing == [False, True]


def test_linked_files_and_any_case_and_accents_of_macos(reef):
    for name in ("0.JPG", "1.Jpeg", "2.BMP", "3.WEBP", "4.Tif", "5.jfif", "é.PNG"):
        Image.new("RGB", (20, 16)).save(reef / "images" / unicodedata.normalize("NFC", name))
    for name in ("0.PNG", "1.TIFF", "2.Png", "3.TIF", "5.png", "é.png"):
        Image.new("L", (20, 16)).save(reef / "labels" / unicodedata.normalize("NFD", name))
    (reef / "labels/4.PNG").symlink_to("0.PNG")
    custom.register(describe(reef))
    assert check_dataset("reef", read=True) == ("reef", 9, [], [])


def test_jpegs_are_no_label_images(reef):
    Image.new("L", (20, 16)).save(reef / "labels/a.png", "JPEG")
    (reef / "labels/day/b.png").unlink()
    Image.new("L", (20, 16)).save(reef / "labels/day/b.jpg")
    custom.register(describe(reef))
    problems = check_dataset("reef", read=True).problems
    for name, problem in zip(("a.png", "day/b.jpg"), problems, strict=True):
        assert f"labels/{name} is not a readable label image: JPEG changes the values" in problem
    (reef / "labels/day/b.jpg").unlink()
    Image.new("L", (20, 16)).save(reef / "labels/day/b.bmp")  # as good as a PNG
    assert len(check_dataset("reef", read=True).problems) == 1


@pytest.mark.parametrize("base", [REEF, PANOPTIC, INSTANCES])
def test_one_class_and_void_are_said_to_make_every_prediction_right(reef, tiny_cfg, caplog, base):
    if base is REEF:
        changes = {"classes": {1: "fish"}, "ignore": [0, 255]}
    else:
        changes = {}
        rewrite(reef / "panoptic.json", categories=[{"id": 8, "name": "fish", "isthing": 1}])
        annotation = json.loads((reef / "panoptic.json").read_text())["annotations"][0]
        rewrite(reef / "panoptic.json", annotations=[{**annotation, "segments_info": annotation["segments_info"][1:]}])
        rewrite(reef / "instances.json", categories=[{"id": 8, "name": "fish"}])
    tiny_cfg.merge_from_list(["DATASETS.OWN", [str(describe(reef, base, **changes))], "DATASETS.TEST", ["reef"]])
    check_evaluation(tiny_cfg)
    remark = "every pixel that counts for the mIoU of reef is of its only class, 'fish', so any prediction is right"
    noted = " ".join(check_dataset("reef").notes)
    # AP counts what is found elsewhere
    assert (remark in caplog.text, remark in noted) == (2 * (base is not INSTANCES,))


def test_linked_folders_are_read(reef):
    for folder in ("images", "labels"):
        (reef / folder / "day").rename(reef / f"stored_{folder}")
        (reef / folder / "day").symlink_to(reef / f"stored_{folder}")
    custom.register(describe(reef))
    assert [record["file_name"] for record in DatasetCatalog.get("reef")][1] == str(reef / "images/day/b.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": []}, "unknown key 'clases'; is it 'classes'"),
        ({"x": 1}, "unknown key 'x'; keys are"),
        ({"without": ["name"]}, "'name' is missing"),
        ({"without": ["images"]}, "'images' is missing"),
        ({"without": ["classes"]}, "'classes' is missing: the names"),
        ({"without": ["labels"]}, "one of the keys labels, instances, panoptic is needed, got none"),
        ({"instances": "instances.json"}, "got labels and instances"),
        ({"panoptic_images": "panoptic"}, "goes with panoptic"),
        ({"base": PANOPTIC, "without": ["panoptic_images"]}, "goes with panoptic, got no such key"),
        ({"base": INSTANCES, "ignore": 255}, "ignore goes with labels"),
        ({"name": 3}, "name must be a text, got 3"),
        ({"classes": "fish"}, "classes must be a list of names, .* got 'fish'"),
        ({"classes": ["sand", True]}, "name of class 1 must be a text, got True; quote"),
        ({"classes": ["sand", "a\nfish"]}, "class 1 has a line break in its name"),
        ({"classes": {"fish": "sand"}}, "value of class 'sand' must be a whole number from 0, got 'fish'"),
        ({"classes": {-1: "sand"}}, "value of class 'sand' must be a whole number from 0, got -1"),
        ({"classes": ["fish", "fish "]}, "same name: fish"),
        ({"classes": []}, "classes have label values from 0 to 65535"),
        ({"classes": {70_000: "sand"}}, "classes have label values from 0 to 65535"),
        ({"things": "fish"}, "things must be a list of class names, got 'fish'"),
        ({"things": ["shark"]}, r"things has \['shark'\], which are not among the classes"),
        ({"ignore": "void"}, "ignore must be a label value"),
        ({"ignore": 1}, r"the label values \[1\] are both classes and ignored"),
        ({"base": PANOPTIC, "classes": {4: "mud"}}, r"classes names the ids \[4\], which .*panoptic.json does not"),
        ({"name": "../reef"}, "name is also a folder's, so it must be printable and have no slash, got '../reef'"),
        ({"name": "shapes_val"}, "another dataset named 'shapes_val'"),
    ],
)
def test_mistakes_in_a_description(reef, tiny_cfg, changes, message):
    tiny_cfg.DATASETS.OWN = [str(describe(reef, **changes))]
    with pytest.raises(ValueError, match=message) as error:
        register_datasets(tiny_cfg)
    assert ".yaml" in str(error.value)


def test_file_names_are_texts(tiny_cfg):
    tiny_cfg.DATASETS.OWN = [3]
    with pytest.raises(ValueError, match=r"DATASETS.OWN must be a list of file names, got \[3\]"):
        register_datasets(tiny_cfg)


def test_missing_files(reef):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml not found. DATASETS.OWN"):
        custom.register(reef / "nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"reef\.yaml: labels: there is no folder .*/mine"):
        custom.register(describe(reef, labels="mine"))
    with pytest.raises(FileNotFoundError, match="instances: there is no file"):
        custom.register(describe(reef, INSTANCES, instances="mine.json"))
    for text, message in (("a: [", "neither YAML nor JSON"), ("reef", "got str")):
        (reef / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            custom.register(reef / "bad.yaml")


def test_files_that_do_not_pair_up(reef, caplog):
    custom.register(describe(reef))
    (reef / "labels/a.png").rename(reef / "labels/c.png")
    with pytest.raises(ValueError, match=r"1 label images .* have no image in .*, such as c"):
        DatasetCatalog.get("reef")
    (reef / "labels/c.png").unlink()
    assert len(DatasetCatalog.get("reef")) == 2 and "1 of 2 files" in caplog.text
    Image.new("RGB", (20, 16)).save(reef / "images/a.png")
    with pytest.raises(ValueError, match="several files named a"):
        DatasetCatalog.get("reef")
