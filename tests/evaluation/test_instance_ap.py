"""Instance AP equals pycocotools and its published numbers; hand-calculated cases; bad input."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from openworldsam.evaluation.metrics import InstanceAP, MasksAndBoxes
from openworldsam.evaluation.metrics.instance import RECALL, STATISTICS

PUBLISHED = {  # SOURCES.md of the sample
    "segm": (0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381),
    "bbox": (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564),
}
SIZE = (40, 60)


def box(x, y, width, height):
    """A rectangular instance with its mask."""
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return {"bbox": [x, y, width, height], "area": width * height, "segmentation": mask_util.encode(mask)}


def scores(predicted, truth, **options):
    accumulator = InstanceAP([1, 2], **options)
    accumulator.update(7, SIZE, predicted, truth)
    return accumulator.compute()


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_published_numbers_and_equality_with_pycocotools(shared, iou_type):
    folder = shared / "data/cocoapi_results"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    predicted = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    accumulator = InstanceAP([category["id"] for category in truth["categories"]], iou_type)
    for image in truth["images"]:
        found, true = ([a for a in kind if a["image_id"] == image["id"]] for kind in (predicted, truth["annotations"]))
        accumulator.update(image["id"], (image["height"], image["width"]), found, true)
    overall, per_class = accumulator.compute()
    assert list(overall) == [*STATISTICS, *(RECALL if iou_type == "segm" else ())]
    overall = {name: overall[name] for name in STATISTICS}
    assert [round(value, 1) for value in overall.values()] == [round(100 * v, 1) for v in PUBLISHED[iou_type]]

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        reference = COCOeval(coco, coco.loadRes(copy.deepcopy(predicted)), iou_type)
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert list(overall.values()) == [100 * value for value in reference.stats]
    precision = reference.eval["precision"][:, :, :, 0, -1]
    for index, category in enumerate(reference.params.catIds):
        known = precision[:, :, index][precision[:, :, index] > -1]
        assert per_class[category]["AP"] == (100 * known.mean() if known.size else None)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_by_hand(iou_type):
    """Class 1 is found with IoU 0.75, next to a false positive of lower score; class 2 is missed."""
    truth = [box(0, 0, 10, 8) | {"category_id": 1}, box(30, 0, 9, 9) | {"category_id": 2}]
    hit = box(0, 0, 10, 6) | {"category_id": 1, "score": 0.9}
    wrong = box(20, 20, 5, 5) | {"category_id": 1, "score": 0.1}
    overall, per_class = scores([hit, wrong], truth, iou_type=iou_type)
    assert per_class == {1: {"AP": pytest.approx(60)}, 2: {"AP": 0}}  # IoU 0.75 passes six of the ten thresholds
    assert overall["AP50"] == overall["AP75"] == pytest.approx(50)
    assert overall["AP"] == overall["APs"] == pytest.approx(30)
    assert overall["APm"] is overall["APl"] is overall["ARl"] is None


def test_recall_by_the_number_of_equal_things():
    """Found: in image 1 two of three of class 1, and one of class 2 beside a crowd; then one of nine, none of four.

    Masks do not find: a thing of another class; one of whose union they cover just half; two things at once.
    """
    columns = [box(6 * n, 0, 6, 4) | {"category_id": 1} for n in range(9)]
    crowd = box(0, 20, 30, 20) | {"category_id": 2, "iscrowd": 1}
    single = box(40, 20, 10, 10) | {"category_id": 2}
    other, half = box(12, 0, 6, 4) | {"category_id": 2}, box(12, 0, 6, 2) | {"category_id": 1}
    images = {
        1: ([columns[0], columns[1], columns[1], other, half, single], [*columns[:3], crowd, single]),
        2: ([box(0, 0, 6, 3) | {"category_id": 1}, box(6, 0, 12, 4) | {"category_id": 1}], columns),
        3: ([], columns[:4]),
    }
    whole, parts = InstanceAP([1, 2]), [InstanceAP([1, 2]), InstanceAP([1, 2])]
    for image_id, (found, truth) in images.items():
        found = [prediction | {"score": 0.5} for prediction in found]
        for accumulator in (whole, parts[image_id % 2]):
            accumulator.update(image_id, SIZE, found, truth)
    parts[0].merge(parts[1])
    for overall in (whole.compute().overall, parts[0].compute().overall):
        recall = {name: overall[name] for name in RECALL}
        expected = {"recall_of_1": 100, "recall_of_2": None, "recall_of_3": 200 / 3}
        assert recall == {**expected, "recall_of_4_to_8": 0, "recall_of_9_or_more": 100 / 9}


def test_crowds_hide_false_positives():
    truth = [box(0, 0, 10, 10) | {"category_id": 1}, box(20, 0, 30, 30) | {"category_id": 1, "iscrowd": 1}]
    found = [box(0, 0, 10, 10) | {"category_id": 1, "score": 0.5}, box(25, 5, 5, 5) | {"category_id": 1, "score": 0.9}]
    assert scores(found, truth).overall["AP"] == pytest.approx(100)
    assert scores(found, truth[:1]).overall["AP"] == pytest.approx(50)


def test_no_prediction_no_ground_truth_no_image():
    truth = [box(0, 0, 10, 10) | {"category_id": 1}]
    assert scores([], truth).overall["AP"] == 0
    assert scores([], truth).per_class == {1: {"AP": 0}, 2: {"AP": None}}
    prediction = [box(0, 0, 10, 10) | {"category_id": 1, "score": 1}]
    for empty in (scores(prediction, []), InstanceAP([1, 2]).compute()):
        assert set(empty.overall.values()) == {None}


def test_size_class_follows_from_the_mask():
    """An unmatched small mask with a medium box is a small false positive, as in Detectron2."""
    size = (100, 100)
    mask = np.zeros(size, dtype=np.uint8, order="F")
    np.fill_diagonal(mask, 1)
    false = {"category_id": 1, "score": 0.9, "bbox": [0, 0, 100, 100], "segmentation": mask_util.encode(mask)}
    small, accumulator = [[50, 0, 60, 0, 60, 10, 50, 10]], InstanceAP([1])
    truth = {"category_id": 1, "area": 100, "bbox": [50, 0, 10, 10], "segmentation": small}
    accumulator.update(1, size, [false, {"category_id": 1, "score": 0.5, "segmentation": small}], [truth])
    assert accumulator.compute().overall["APs"] == pytest.approx(50)


def test_all_mask_formats_are_equal():
    mask = box(5, 5, 20, 10)["segmentation"]
    polygon = [[5, 5, 25, 5, 25, 15, 5, 15]]
    runs = {"size": list(SIZE), "counts": [5 * 40 + 5, *[10, 30] * 19, 10, 40 * 60 - 25 * 40 + 25]}
    for form in (mask, mask | {"counts": mask["counts"].decode()}, polygon, runs):
        truth = {"category_id": 1, "area": 200, "segmentation": form}
        overall = scores([{"category_id": 1, "score": 1, "segmentation": mask}], [truth]).overall
        assert overall["AP"] == pytest.approx(100)


def test_masks_and_boxes_of_the_same_objects():
    """The prediction lacks 28 of 100 pixels inside the correct box: it matches up to IoU 0.7."""
    mask = mask_util.decode(box(3, 4, 10, 10)["segmentation"])
    mask[4:8, 3:10] = 0
    prediction = {"category_id": 1, "score": 1, "segmentation": mask_util.encode(np.asfortranarray(mask))}
    both, other = MasksAndBoxes([1, 2]), MasksAndBoxes([1, 2])
    both.update(7, SIZE, [prediction], [box(3, 4, 10, 10) | {"category_id": 1}])
    other.update(8, SIZE, [], [])
    other.merge(both)
    overall, per_class = other.compute()
    assert (overall["AP"], overall["AP_box"], overall["AP75"]) == (pytest.approx(50), pytest.approx(100), 0)
    assert len(overall) == 12 + 5 + 12 and per_class == {1: {"AP": overall["AP"]}, 2: {"AP": None}}


def test_missing_boxes_are_taken_from_the_masks():
    shape = box(3, 4, 20, 10) | {"category_id": 1, "score": 1}
    mask_only = {key: value for key, value in shape.items() if key != "bbox"}
    assert scores([mask_only], [shape], iou_type="bbox").overall["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 3}, "unknown category 3"),
        ({"segmentation": []}, "without a polygon"),
        ({"segmentation": [[1, 2]]}, "neither polygons nor an RLE"),
        ({"segmentation": {"counts": "abc"}}, "without size and counts"),
        ({"segmentation": {"size": [60, 40], "counts": [2400]}}, r"has the size \[60, 40\], its image \[40, 60\]"),
        # pycocotools would never return from comparing the next two with a mask
        ({"segmentation": {"size": [40, 60], "counts": [500, 30]}}, "have 530 pixels, its image 2400"),
        ({"segmentation": {"size": [40, 60], "counts": "T?"}}, "its image 2400"),
        ({"segmentation": {"size": [40, 60], "counts": [2500, -100]}}, "its image 2400"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_counts(change, message):
    accumulator = InstanceAP([1, 2])
    good = box(0, 0, 5, 5) | {"category_id": 1, "score": 0.5}
    for images in (([good | change], []), ([], [good | change])):
        with pytest.raises(ValueError, match=message):
            accumulator.update(1, SIZE, *images)
    assert not accumulator.images


def test_an_image_counts_once():
    accumulator, other = InstanceAP([1]), InstanceAP([1])
    for each in (accumulator, other):
        each.update(5, SIZE, [], [])
    for repeat in (lambda: accumulator.update(5, SIZE, [], []), lambda: accumulator.merge(other)):
        with pytest.raises(ValueError, match="image 5 was added twice"):
            repeat()


def test_unknown_iou_type():
    with pytest.raises(ValueError, match="one of"):
        InstanceAP([1], "keypoints")
