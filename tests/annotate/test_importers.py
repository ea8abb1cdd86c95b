"""Annotation files, read back by the libraries of the programs; a test is skipped if its library is not installed.

None is a dependency: pip install datumaro cvat-sdk label-studio-sdk fiftyone, best into a separate environment.
"""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from openworldsam.annotate.coco import write_coco
from openworldsam.annotate.cvat import write_cvat
from openworldsam.annotate.label_studio import write_label_studio
from openworldsam.inference import TASKS


def without_ending(name):
    return name.rpartition(".")[0]


def touch(folder, names):
    """Make empty image files, as importers check that they exist."""
    for path in (folder / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("task", TASKS)
def test_datumaro_reads_cvat(saved, prompts, names, task):
    dm = pytest.importorskip("datumaro")
    results, found = saved(task)
    touch(results.folder / "images", found)
    dataset = dm.Dataset.import_from(str(write_cvat(results)[0]), "cvat")
    assert [label.name for label in dataset.categories()[dm.AnnotationType.label]] == list(prompts.texts)
    assert {item.id: item.attributes["frame"] for item in dataset} == {
        without_ending(name): names.index(name) for name in found
    }
    for item, prediction in zip(dataset, found.values(), strict=True):
        assert item.media.size == prediction.masks.shape[1:]
        for level, (mask, n) in enumerate(zip(item.annotations, np.argsort(prediction.scores), strict=True)):
            assert np.array_equal(mask.image, prediction.masks[n])
            assert (mask.label, mask.z_order) == (prediction.prompt_index[n], level)


def test_cvat_encodes_masks_alike(saved):
    pytest.importorskip("cvat_sdk")
    from cvat_sdk.masks import decode_mask, encode_mask

    results, found = saved("instance")
    root = ElementTree.parse(write_cvat(results)[0]).getroot()
    for image, prediction in zip(root.findall("image"), found.values(), strict=True):
        height, width = prediction.masks.shape[1:]
        for element, n in zip(image.findall("mask"), np.argsort(prediction.scores), strict=True):
            left, top, across, down = (int(element.get(key)) for key in ("left", "top", "width", "height"))
            runs = [int(run) for run in element.get("rle").split(",")]
            code = [*runs, left, top, left + across - 1, top + down - 1]
            assert code == encode_mask(prediction.masks[n])
            assert np.array_equal(decode_mask(code, image_width=width, image_height=height), prediction.masks[n])


def test_cvat_knows_the_labels(saved, prompts):
    models = pytest.importorskip("cvat_sdk").models
    labels = [
        models.PatchedLabelRequest(**label) for label in json.loads(write_cvat(saved("instance")[0])[1].read_text())
    ]
    assert [label.name for label in labels] == list(prompts.texts)
    assert {models.LabelType(label.type).value for label in labels} == {"mask"}  # an unknown one is a ValueError


@pytest.mark.parametrize("task", TASKS)
def test_label_studio_accepts_the_tasks(saved, prompts, tmp_path, task):
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    objects = pytest.importorskip("label_studio_sdk.label_interface.objects")
    results, found = saved(task)
    tasks, config = write_label_studio(results, tmp_path)
    view = interface.LabelInterface(config.read_text(encoding="utf-8"))
    view.validate()
    (control,) = view.controls
    assert control.labels == list(prompts.texts)
    for content, prediction in zip(json.loads(tasks.read_text()), found.values(), strict=True):
        assert objects.TaskValue(**content).data == content["data"]
        # With predictions validate_task of label-studio-sdk 2.1.2 fails, whatever they are.
        assert view.validate_task({"data": content["data"]})
        (predicted,) = content["predictions"]
        assert view.validate_prediction(predicted, return_errors=True) == []
        for n, region in enumerate(predicted["result"]):
            size = region["original_height"], region["original_width"]
            rgba = brush.decode_rle(region["value"]["rle"]).reshape(*size, 4)
            assert np.array_equal(rgba, np.repeat(255 * prediction.masks[n, ..., None], 4, axis=-1))
            assert region["value"]["brushlabels"] == [prompts.texts[prediction.prompt_index[n]]]
        assert len(predicted["result"]) == len(prediction.masks)


@pytest.mark.parametrize("task", TASKS)
def test_datumaro_reads_coco_instances(saved, prompts, names, task, tmp_path):
    dm = pytest.importorskip("datumaro")
    results, found = saved(task)
    dataset = import_coco(dm, write_coco(results, {})[0], "coco_instances", tmp_path)
    assert [label.name for label in dataset.categories()[dm.AnnotationType.label]] == list(prompts.texts)
    items = {item.id: item for item in dataset}
    for name, prediction in found.items():
        item, (height, width) = items.pop(without_ending(name)), prediction.masks.shape[1:]
        assert (item.attributes["id"], item.media.size) == (names.index(name) + 1, (height, width))
        masks = [a for a in item.annotations if a.type == dm.AnnotationType.mask]
        masks.sort(key=lambda mask: mask.id)
        assert np.array_equal([mask.image for mask in masks], prediction.masks)
        assert [mask.label for mask in masks] == prediction.prompt_index.tolist()
        assert [mask.attributes["score"] for mask in masks] == prediction.scores.tolist()
    assert not items


def test_datumaro_reads_coco_panoptic(saved, tmp_path):
    dm = pytest.importorskip("datumaro")
    results, found = saved("panoptic")
    dataset = import_coco(dm, write_coco(results, {})[1], "coco_panoptic", tmp_path)
    items = {item.id: item for item in dataset}
    for name, prediction in found.items():
        masks = items.pop(without_ending(name)).annotations
        assert np.array_equal([mask.image for mask in masks], prediction.masks)
        assert [mask.label for mask in masks] == prediction.prompt_index.tolist()
        assert [mask.id for mask in masks] == list(range(1, len(masks) + 1))
    assert not items


def import_coco(dm, path, kind, folder):
    """Datumaro wants COCO's jsons, and the PNGs of panoptic segmentation, in annotations, and images beside it."""
    annotations = folder / "annotations"
    annotations.mkdir()
    (folder / "images").mkdir()
    shutil.copy(path, annotations)
    if kind == "coco_panoptic":
        shutil.copytree(path.with_suffix(""), annotations / "panoptic")
    return dm.Dataset.import_from(str(annotations / path.name), kind)


@pytest.mark.parametrize("task", TASKS)
def test_fiftyone_reads_coco_instances(saved, prompts, tmp_path, task):
    coco = pytest.importorskip("fiftyone.utils.coco")
    results, found = saved(task)
    touch(tmp_path / "photos", found)
    path = write_coco(results, {})[0]
    importer = coco.COCODetectionDatasetImporter(
        data_path=str(tmp_path / "photos"),
        labels_path=str(path),
        label_types="segmentations",
        include_annotation_id=True,
    )
    with importer:
        images = {image: detections.detections for image, _, detections in importer}
    ids = iter(range(1, 100))
    for name, prediction in found.items():
        detections = images.pop(str(tmp_path / "photos" / name))
        assert [d.label for d in detections] == [prompts.texts[i] for i in prediction.prompt_index]
        assert [d.confidence for d in detections] == prediction.scores.tolist()
        for detection, mask in zip(detections, prediction.masks, strict=True):
            assert detection.coco_id == next(ids)
            ys, xs = mask.nonzero()
            assert np.array_equal(detection.mask, mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
    assert not images
