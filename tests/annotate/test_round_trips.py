"""Annotation files, read back by other tools and by decoders written from the documentation of the formats."""

import json
import tracemalloc
import xml.etree.ElementTree as ElementTree
from urllib.parse import unquote

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools.coco import COCO

from openworldsam.annotate.coco import write_coco
from openworldsam.annotate.cvat import write_cvat
from openworldsam.annotate.label_studio import pack_mask, write_label_studio
from openworldsam.annotate.prompts import Prompts
from openworldsam.annotate.results import FolderResults
from openworldsam.data.records.rle import run_lengths
from openworldsam.inference import TASKS
from openworldsam.utils.files import read_json, save_json


@pytest.mark.parametrize("task", TASKS)
def test_coco_instances_are_the_masks(saved, prompts, task, names):
    results, found = saved(task)
    assert write_coco(results, {"task": task})[0] == results.folder / "instances.json"
    coco = COCO(results.folder / "instances.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(prompts.texts)
    assert {i: image["file_name"] for i, image in coco.imgs.items()} == {1: names[0], 3: names[2]}
    for number, prediction in zip((1, 3), found.values(), strict=True):
        image = coco.imgs[number]
        assert (image["height"], image["width"]) == prediction.masks.shape[1:]
        annotations = coco.imgToAnns[number]
        assert np.array_equal([coco.annToMask(a) for a in annotations], prediction.masks)
        assert [a["category_id"] - 1 for a in annotations] == prediction.prompt_index.tolist()
        assert [a["score"] for a in annotations] == prediction.scores.tolist()
        assert [a["isthing"] for a in annotations] == prediction.is_thing.tolist()
        for annotation, mask in zip(annotations, prediction.masks, strict=True):
            ys, xs = mask.nonzero()
            assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["area"] == mask.sum()
    assert len(coco.anns) == sum(len(prediction.masks) for prediction in found.values())


def test_panoptic_pngs_are_the_segments(saved):
    results, found = saved("panoptic")
    write_coco(results, {})
    content = json.loads((results.folder / "panoptic.json").read_text())
    assert [a["image_id"] for a in content["annotations"]] == [image["id"] for image in content["images"]] == [1, 3]
    for annotation, prediction in zip(content["annotations"], found.values(), strict=True):
        with Image.open(results.folder / "panoptic" / annotation["file_name"]) as png:
            ids = rgb2id(np.array(png))
        segments = annotation["segments_info"]
        assert np.array_equal([ids == segment["id"] for segment in segments], prediction.masks)
        assert np.array_equal(ids > 0, prediction.masks.any(axis=0))
        assert [segment["category_id"] - 1 for segment in segments] == prediction.prompt_index.tolist()
        assert [segment["area"] for segment in segments] == prediction.masks.sum(axis=(1, 2)).tolist()
    path = str(results.folder / "panoptic.json")
    scores = pq_compute(path, path)
    assert all(scores[group]["pq"] == 1 for group in ("All", "Things", "Stuff")) and scores["All"]["n"] == 3


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_semantic_pngs_have_the_class_of_each_pixel(saved, prompts, task):
    results, found = saved(task)
    write_coco(results, {})
    assert (results.folder / "classes.txt").read_text().splitlines() == list(prompts.texts)
    for name, prediction in found.items():
        with Image.open(results.png_path("semantic", name)) as png:
            labels = np.array(png)
        for index in range(len(prompts.texts)):
            mask = prediction.masks[prediction.prompt_index == index].any(axis=0)
            assert np.array_equal(labels == index, mask)
        assert np.array_equal(labels == 255, ~prediction.masks.any(axis=0))


def test_many_prompts_need_semantic_pngs_of_16_bits(made, tmp_path):
    texts = tuple(f"thing {n}" for n in range(300))
    image, prediction = made(task="semantic", count=3)
    results = FolderResults(tmp_path, [image.name], Prompts(texts, (True,) * 300), "semantic")
    results.save(image, prediction)
    with Image.open(results.png_path("semantic", image.name)) as png:
        assert set(np.unique(np.array(png))) == {0, 1, 2, 65_535}


def unpack(packed):
    """Decode rle-pack (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack)."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    place = 0

    def take(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    number, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < number:
        repeated, size = take(1), sizes[take(2)]
        count = take(size) + 1
        values += [take(word)] * count if repeated else [take(word) for _ in range(count)]
    assert len(values) == number and len(bits) - place < 8
    return np.array(values, dtype=np.uint8)


def test_a_packed_mask_by_hand():
    """2 pixels, hence 8 values of 8 bits; sizes 3, 4, 8, 16; then 4 times 0 and 4 times 255."""
    header = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    bits = header + "1" + "00" + "011" + "00000000" + "1" + "00" + "011" + "11111111"
    expected = [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]
    assert pack_mask(np.array([[False, True]])) == expected


@pytest.mark.parametrize("size", [(1, 1), (300, 500)])
@pytest.mark.parametrize("value", [False, True])
def test_long_runs_are_packed_in_parts(size, value):
    assert np.array_equal(unpack(pack_mask(np.full(size, value))), np.full(4 * size[0] * size[1], 255 * value))


def test_label_studio_tasks_are_the_masks(saved, prompts, tmp_path):
    results, found = saved("instance")
    tasks, config = write_label_studio(results, tmp_path / "my pictures")
    view = ElementTree.parse(config).getroot()
    assert [label.get("value") for label in view.iter("Label")] == list(prompts.texts)
    tag, image = view.find("BrushLabels"), view.find("Image")
    for task, (name, prediction) in zip(json.loads(tasks.read_text()), found.items(), strict=True):
        assert unquote(task["data"][image.get("value")[1:]]) == f"/data/local-files/?d=my pictures/{name}"
        assert "#" not in task["data"]["image"] and "&" not in task["data"]["image"]
        (predicted,) = task["predictions"]
        assert len({region["id"] for region in predicted["result"]}) == len(prediction.masks)
        for n, region in enumerate(predicted["result"]):
            assert (region["from_name"], region["to_name"]) == (tag.get("name"), tag.get("toName"))
            assert region["to_name"] == image.get("name") and region["type"] == tag.tag.lower()
            size = region["original_height"], region["original_width"]
            assert region["value"]["format"] == "rle"
            rgba = unpack(region["value"]["rle"]).reshape(*size, 4)
            assert np.array_equal(rgba[..., 3] > 0, prediction.masks[n])
            assert region["value"]["brushlabels"] == [prompts.texts[prediction.prompt_index[n]]]
            assert region["score"] == prediction.scores[n]


def test_cvat_masks_are_the_masks(saved, prompts, names):
    results, found = saved("instance")
    annotations, labels = write_cvat(results)
    assert [label["name"] for label in json.loads(labels.read_text())] == list(prompts.texts)
    root = ElementTree.parse(annotations).getroot()
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.findall("meta/task/labels/label")] == list(prompts.texts)
    images = root.findall("image")
    assert [(image.get("id"), image.get("name")) for image in images] == [("0", names[0]), ("2", names[2])]
    for image, prediction in zip(images, found.values(), strict=True):
        assert (int(image.get("height")), int(image.get("width"))) == prediction.masks.shape[1:]
        worst_first = np.argsort(prediction.scores)
        for level, (element, n) in enumerate(zip(image.findall("mask"), worst_first, strict=True)):
            left, top, width, height = (int(element.get(key)) for key in ("left", "top", "width", "height"))
            pixels, value = [], False
            for length in element.get("rle").split(","):
                pixels += [value] * int(length)
                value = not value
            mask = np.zeros_like(prediction.masks[n])
            mask[top : top + height, left : left + width] = np.reshape(pixels, (height, width))
            assert np.array_equal(mask, prediction.masks[n])
            assert element.get("label") == prompts.texts[prediction.prompt_index[n]]
            assert int(element.get("z_order")) == level


def test_run_lengths_by_hand():
    assert run_lengths(np.array([[True, True, False], [True, False, False]])) == [0, 2, 1, 1, 2]
    assert run_lengths(np.array([[False, True]])) == [1, 1]
    assert run_lengths(np.zeros((2, 2), dtype=bool)) == [4]


def test_an_image_is_done_if_it_has_all_files_and_is_unchanged(made, prompts, tmp_path):
    image, prediction = made("sub/a.png", task="panoptic")
    results = FolderResults(tmp_path, [image.name], prompts, "panoptic", overlays=True)
    assert not results.is_done(image.name, image.version)
    results.save(image, prediction)
    assert results.is_done(image.name, image.version)
    assert not results.is_done(image.name, (1, 3))
    for kind in ("panoptic", "semantic", "overlays"):
        path = results.png_path(kind, image.name)
        path.rename(tmp_path / "moved.png")
        assert not results.is_done(image.name, image.version)
        (tmp_path / "moved.png").rename(path)
    with Image.open(results.png_path("overlays", image.name)) as overlay:
        assert overlay.width >= image.pixels.shape[1]


def test_nothing_found(made, prompts, tmp_path):
    image, prediction = made(task="panoptic", count=0)
    results = FolderResults(tmp_path, [image.name], prompts, "panoptic")
    results.save(image, prediction)
    write_coco(results, {})
    assert COCO(tmp_path / "instances.json").anns == {}
    (task,) = json.loads(write_label_studio(results, tmp_path)[0].read_text())
    assert task["predictions"][0]["result"] == []
    assert ElementTree.parse(write_cvat(results)[0]).find("image/mask") is None


def test_memory_does_not_grow_with_the_number_of_images(made, prompts, tmp_path):
    names = [f"{n}.png" for n in range(200)]
    results, peaks = FolderResults(tmp_path, names, prompts, "panoptic"), []
    image, prediction = made("0.png", (12, 16), "panoptic")
    results.save(image, prediction)
    record = read_json(tmp_path / "records/0.json")
    for name in names[1:]:
        save_json((tmp_path / "records" / name).with_suffix(".json"), {**record, "file_name": name})
    for part in (results._replace(names=names[:20]), results):
        tracemalloc.start()
        write_coco(part, {})
        write_label_studio(part, tmp_path)
        write_cvat(part)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(COCO(tmp_path / "instances.json").imgs) == 200
    assert peaks[1] < 1.2 * peaks[0]
