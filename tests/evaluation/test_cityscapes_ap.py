"""Cityscapes' AP equals cityscapesScripts on the same files; hand-calculated cases."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from openworldsam import cli
from openworldsam.data.datasets.benchmarks import read_classes
from openworldsam.data.records.rle import encode_mask
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.metrics.cityscapes import CityscapesAP
from openworldsam.evaluation.score import score_panoptic
from openworldsam.inference.nms import mask_boxes

score_predictions = cli.command("score")

PERSON, CAR, BICYCLE = 24, 26, 33
EVALUATED = {*(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23), *(24, 25, 26, 27, 28, 31, 32, 33)}
THINGS = (24, 25, 26, 27, 28, 31, 32, 33)
NAMES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
SIZE = (48, 96)


def instance_ids(generator):
    """Values as in *_gtFine_instanceIds.png: roads, ignored classes, objects of all sizes and groups."""
    values = np.full(SIZE, generator.choice([7, 0, 4]), np.int64)
    for _ in range(generator.integers(0, 12)):
        label = generator.choice([*THINGS, PERSON, CAR, CAR, 29, 4])
        number = generator.integers(0, 4)
        height, width = generator.integers(4, 30, 2)
        y, x = generator.integers(0, SIZE[0] - 4), generator.integers(0, SIZE[1] - 4)
        values[y : y + height, x : x + width] = label * 1000 + number if generator.random() < 0.8 else label
    return values


def predictions(generator, values):
    """Objects moved, relabelled, doubled or invented; scores with ties."""
    found = []
    for value in np.unique(values).tolist():
        for _ in range(generator.integers(0, 3)):
            mask = np.roll(values == value, generator.integers(-3, 4, 2), axis=(0, 1))
            label = value // 1000 if value >= 1000 else value
            if label not in THINGS or generator.random() < 0.15:
                label = int(generator.choice(THINGS))
            found.append({"category_id": label, "score": int(generator.integers(0, 12)) / 12, "mask": mask})
    mask = np.zeros(SIZE, bool)
    mask[5:20, 5:30] = generator.random() < 0.5  # empty, or anywhere
    return [*found, {"category_id": CAR, "score": 0.3, "mask": mask}]


def ours(images):
    """The scores of (values, predictions) pairs, from the segments that createPanopticImgs makes of the values."""
    accumulator = CityscapesAP(THINGS)
    for values, found in images:
        label = {v: v // 1000 if v >= 1000 else v for v in np.unique(values).tolist()}
        segments = [(v, c, int(v < 1000 and c in THINGS)) for v, c in label.items() if c in EVALUATED]
        segment_map = np.where(np.isin(values, [v for v, *_ in segments]), values, 0)
        coded = [{**p, "segmentation": encode_mask(p["mask"])} for p in found]
        accumulator.update(coded, segment_map, segments, (segment_map == 0) & (values < 1000))
    return accumulator.compute()


def name(index):
    return f"ulm_{index:06d}_000019"


def official(folder, images, monkeypatch):
    """AP and AP50, 0 to 1, of cityscapesScripts on files."""
    evaluator = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(evaluator, "writeDict2JSON", lambda *_: None)  # of what is not read; fails with NumPy 2
    for key, value in {"quiet": True, "JSONOutput": False, "gtInstancesFile": str(folder / "gt.json")}.items():
        monkeypatch.setattr(evaluator.args, key, value)
    monkeypatch.setattr(evaluator.args, "predictionPath", str(folder))
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # which NumPy 2.4 no longer has
    truths, predicted = [], []
    for index, (values, found) in enumerate(images):
        truths.append(str(folder / f"{name(index)}_gtFine_instanceIds.png"))
        Image.fromarray(values.astype(np.uint16)).save(truths[-1])
        lines = []
        for number, prediction in enumerate(found):
            Image.fromarray(prediction["mask"].astype(np.uint8) * 255).save(folder / f"{index}_{number}.png")
            lines.append(f"{index}_{number}.png {prediction['category_id']} {prediction['score']}\n")
        predicted.append(str(folder / f"{name(index)}_pred.txt"))
        Path(predicted[-1]).write_text("".join(lines))
    return evaluator.evaluateImgLists(predicted, truths, evaluator.args)["averages"]


@pytest.mark.parametrize("seed", range(4))
def test_equals_cityscapesscripts(tmp_path, monkeypatch, seed):
    generator = np.random.default_rng(seed)
    truths = [instance_ids(generator) for _ in range(12)]
    images = [(values, predictions(generator, values)) for values in truths]
    expected = official(tmp_path, images, monkeypatch)
    scores = ours(images)
    assert scores.overall["AP_cityscapes"] == pytest.approx(100 * expected["allAp"], rel=1e-12)
    assert scores.overall["AP50_cityscapes"] == pytest.approx(100 * expected["allAp50%"], rel=1e-12)
    for category, label in zip(THINGS, NAMES, strict=True):
        value, reference = scores.per_class[category]["AP_cityscapes"], expected["classes"][label]["ap"]
        assert value == (None if np.isnan(reference) else pytest.approx(100 * reference, rel=1e-12))
    assert 0 < expected["allAp"] < 1


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files of cityscapesScripts, the same predictions as COCO results, and the scores of cityscapesScripts."""
    generator = np.random.default_rng(5)
    truths = [instance_ids(generator) for _ in range(8)]
    truths[0][:10, 60:80] = 29_001  # a caravan, which is in no segment and not ignored
    images = [(values, predictions(generator, values)) for values in truths]
    expected = official(tmp_path, images, monkeypatch)
    results = [
        {"image_id": i, **{key: p[key] for key in ("category_id", "score")}, "segmentation": encode_mask(p["mask"])}
        for i, (_, found) in enumerate(images)
        for p in found
    ]
    return tmp_path, results, expected


@pytest.mark.parametrize("form", ["text files", "names", "ids"])
def test_files_are_scored_without_a_model(files, exit_status, form):
    folder, results, expected = files
    given = ["--gt-dir", folder]
    if form == "text files":
        given += ["--pred-dir", folder]
    else:
        listed = [{"id": i, "file_name": f"ulm/{name(i)}_leftImg8bit.png", "height": 48, "width": 96} for i in range(8)]
        (folder / "images.json").write_text(json.dumps({"images": listed}))
        named = results if form == "ids" else [{**each, "image_id": name(each["image_id"])} for each in results]
        (folder / "found.json").write_text(json.dumps(named))
        given += ["--pred", folder / "found.json", *(["--gt", folder / "images.json"] if form == "ids" else [])]
    assert exit_status(score_predictions, "--task", "cityscapes", *given, "--output", folder / "scores.json") == 0
    content = json.loads((folder / "scores.json").read_text())
    assert content["AP_cityscapes"] == pytest.approx(100 * expected["allAp"], rel=1e-12)
    assert content["AP50_cityscapes"] == pytest.approx(100 * expected["allAp50%"], rel=1e-12)
    for label, metrics in expected["classes"].items():
        found = content["per_class"][label]["AP_cityscapes"]
        assert found == (None if np.isnan(metrics["ap"]) else pytest.approx(100 * metrics["ap"], rel=1e-12))


STRANGER = '{"images": [{"id": 1, "height": 1, "width": 1, "file_name": "a.png"}]}'
UNLISTED = '[{"image_id": 3, "score": 1, "category_id": 24, "segmentation": []}]'


@pytest.mark.parametrize(
    ("file", "content", "options", "message"),
    [
        (f"{name(3)}_b.txt", "", ["--pred-dir", "."], f"several predictions of {name(3)}"),
        (f"{name(3)}_pred.txt", "a.png 24", ["--pred-dir", "."], "a path, a label id and a confidence"),
        (f"{name(3)}_pred.txt", "../a.png 24 .5", ["--pred-dir", "."], "lies outside"),
        (f"{name(3)}_pred.txt", "self.png 24 .5", ["--pred-dir", "."], "self.png: too many levels of symbolic links"),
        (f"{name(3)}_pred.txt", "none.png 24 .5", ["--pred-dir", "."], "none.png not found"),
        (f"{name(8)}_gtFine_instanceIds.png", "", ["--pred-dir", "."], f"no prediction of {name(8)}"),
        (f"{name(3)}_pred.txt", f"{name(0)}_gtFine_instanceIds.png 24 nan", ["--pred-dir", "."], "score must be a fin"),
        ("found.json", UNLISTED, ["--pred", "found.json"], "does not list: 3"),
        ("a.json", STRANGER, ["--gt", "a.json", "--pred", "found.json"], "images without ground truth, such as a"),
        ("a.json", "", [], "--task cityscapes needs --gt-dir, and --pred or --pred-dir"),
    ],
)
def test_what_cannot_be_scored_is_one_line(files, exit_status, capsys, file, content, options, message):
    Path("self.png").symlink_to("self.png")
    Path(file).write_text(content)  # in the folder of the files
    given = ["--task", "cityscapes", "--gt-dir", ".", *options, "--output", "scores.json"]
    assert exit_status(score_predictions, *given) == 2 and message in capsys.readouterr().err


def test_train_ids_of_createpanopticimgs_are_those_of_the_same_names(tmp_path, monkeypatch):
    """Train ids 7, 8, 11, 12, 13 and 17 are label ids of other classes."""
    script = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "cityscapes"
    for index in range(2):
        values = instance_ids(np.random.default_rng(index)).astype(np.uint16)
        values[:2, :14] = np.repeat([7, 8, 11, 12, 13, 17, 26_001], 2)
        pair = ("gtFine_instanceIds", values), ("leftImg8bit", np.zeros((*SIZE, 3), np.uint8))
        for label, pixels in pair:
            folder = root / label.removesuffix("_instanceIds") / "val/ulm"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{name(index)}_{label}.png")
    records, files = {}, {}
    for train_ids, written in ((False, "cityscapes_panoptic_val"), (True, "cityscapes_panoptic_val_trainId")):
        script.convert2panoptic(str(root / "gtFine"), str(root), train_ids, ["val"])
        files[train_ids] = (root / f"{written}.json", root / written)
        shutil.copy(files[train_ids][0], root / "panoptic_val.json")
        shutil.copytree(root / written, root / "panoptic_val", dirs_exist_ok=True)
        records[train_ids] = [record["segments_info"] for record in DatasetCatalog.get("cityscapes_19_panoptic_val")]
    assert records[True] == records[False] and all(records[True])
    for truth, predicted in ((True, False), (False, True), (True, True)):
        scores = score_panoptic(*files[truth], *files[predicted]).scores
        assert scores.overall["SQ"] == scores.overall["PQ_st"] == 100


class Given(torch.nn.Module):
    """Answers each image with some predictions, whatever the prompts."""

    def __init__(self, images):
        super().__init__()
        self.found = [found for _, found in images]
        self.order = [category.id for category in read_classes("cityscapes_19")]

    def forward(self, batch, **_):
        return [self.answer([p for p in self.found[x["image_id"]] if p["mask"].any()]) for x in batch]

    def answer(self, found):
        masks = torch.from_numpy(np.array([p["mask"] for p in found]).reshape(-1, *SIZE))
        classes = torch.tensor([self.order.index(p["category_id"]) for p in found], dtype=torch.long)
        scores = torch.tensor([p["score"] for p in found], dtype=torch.float64)
        boxes = Boxes(mask_boxes(masks))
        instances = Instances(SIZE, pred_masks=masks, pred_boxes=boxes, scores=scores, pred_classes=classes)
        return {"instances": instances, "panoptic_seg": (torch.zeros(SIZE, dtype=torch.int32), [])}


def test_the_evaluation_of_cityscapes_has_it_beside_cocos(tmp_path, monkeypatch, tiny_cfg):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    generator, images = np.random.default_rng(11), []
    for index in range(6):
        values = instance_ids(generator)
        values[:10, 60:80] = 29_001  # a caravan, which is in no segment and not ignored
        images.append((values, predictions(generator, values)))
        pair = ("leftImg8bit/val/ulm", f"ulm_{index:06d}_000019_leftImg8bit.png", np.zeros((*SIZE, 3), np.uint8))
        truth = ("gtFine/val/ulm", f"ulm_{index:06d}_000019_gtFine_instanceIds.png", values.astype(np.uint16))
        for folder, file, pixels in (pair, truth):
            (tmp_path / "cityscapes" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "cityscapes" / folder / file)
    cli.run("prepare", ["cityscapes", "--root", str(tmp_path), "--workers", "1", "--no-check"])
    tiny_cfg.merge_from_list(["DATASETS.TEST", ["cityscapes_19_panoptic_val"], "DATALOADER.NUM_WORKERS", 0])
    content = evaluate(tiny_cfg, Given(images))["cityscapes_19_panoptic_val"]
    assert content["images"] == 6 and content["instance"]["AP"] != content["cityscapes"]["AP_cityscapes"]
    expected = official(tmp_path, images, monkeypatch)
    assert content["cityscapes"]["AP_cityscapes"] == pytest.approx(100 * expected["allAp"], rel=1e-12)
    for label, metrics in expected["classes"].items():
        found = content["cityscapes"]["per_class"][label]["AP_cityscapes"]
        assert found == (None if np.isnan(metrics["ap"]) else pytest.approx(100 * metrics["ap"], rel=1e-12))
    (tmp_path / "cityscapes/gtFine").rename(tmp_path / "elsewhere")
    assert evaluate(tiny_cfg, Given(images))["cityscapes_19_panoptic_val"]["images"] == 6


def rectangle(y, x, height, width):
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def scored(truth, found, void=None):
    """AP of cars from (region, mask) pairs, where a region below 1000 is a group, and (score, mask) pairs."""
    segment_map = np.zeros(SIZE, int)
    for id_, mask in truth:
        segment_map[mask] = id_
    coded = [{"category_id": CAR, "score": score, "segmentation": encode_mask(mask)} for score, mask in found]
    accumulator, other = CityscapesAP([CAR, BICYCLE]), CityscapesAP([CAR, BICYCLE])
    road = np.zeros(SIZE, bool) if void is None else void
    accumulator.update(coded, segment_map, [(id_, CAR, int(id_ < 1000)) for id_, _ in truth], road)
    other.merge(accumulator)
    assert other.compute().per_class[BICYCLE] == {"AP_cityscapes": None}
    return other.compute().overall["AP_cityscapes"]


def test_by_hand():
    car, side = rectangle(0, 0, 10, 20), rectangle(20, 40, 10, 20)
    assert scored([(1001, car)], [(0.5, car)]) == 100
    assert scored([(1001, car)], []) == 0 and scored([], [(0.5, car)]) is None
    # a false positive of a lower score costs nothing, one of a higher score three quarters
    assert scored([(1001, car)], [(0.5, car), (0.3, side)]) == 100
    assert scored([(1001, car)], [(0.5, car), (0.7, side)]) == pytest.approx(25)
    assert scored([(1001, car), (1002, side)], [(0.5, car)]) == pytest.approx(50)
    three_quarters = rectangle(0, 0, 10, 15)  # an IoU of 0.75 exceeds five of the ten
    assert scored([(1001, car)], [(0.5, three_quarters)]) == pytest.approx(50)


def test_void_groups_and_small_objects_excuse_a_prediction():
    car, side, small = rectangle(0, 0, 10, 20), rectangle(20, 40, 10, 20), rectangle(40, 0, 3, 9)
    found = [(0.5, car), (0.9, side)]
    assert scored([(1001, car)], found) == pytest.approx(25)
    assert scored([(1001, car)], found, void=side) == pytest.approx(100)
    assert scored([(1001, car), (CAR, side)], found) == pytest.approx(100)
    assert scored([(1001, car), (1002, small)], [(0.5, car), (0.9, small)]) == pytest.approx(100)
