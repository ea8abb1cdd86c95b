"""Calibration of scores: bins, errors and thresholds by hand, parts that are merged, and the ground truth it uses."""

import json

import numpy as np
import pytest
import torch

from openworldsam.data.records.rle import encode_mask
from openworldsam.evaluation.calibration import BINS, Calibration, true_masks
from openworldsam.evaluation.examples import Example, Truth

RULES = ("iou", "match")


def strip(start, end):
    """A mask of 1 x 12 pixels."""
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[:, start:end] = True
    return mask


def masks(*places):
    return torch.stack([strip(*place) for place in places]) if places else torch.zeros(0, 1, 12, dtype=torch.bool)


def by_rule(iou, match=None):
    return {"iou": torch.tensor(iou), "match": torch.tensor(match or iou)}


@pytest.fixture
def by_hand():
    """Two present prompts and an absent one.

    Of the first, with objects on 0..4 and 4..8: an exact mask, a duplicate of it (IoU 3/4), a wrong one (1/4), and one
    of the second object (3/4). Of the second, with an object on 0..8: one of IoU exactly a half, which is wrong.
    """
    calibration = Calibration(RULES, nms_threshold=0.5)
    first = masks((0, 4), (0, 3), (7, 11), (4, 7))
    calibration.update(first, by_rule([0.95, 0.9, 0.9, 0.5], [0.95, 0.9, 0.1, 0.7]), masks((0, 4), (4, 8)))
    calibration.update(masks((0, 4)), by_rule([0.8], [0.5]), masks((0, 8)))
    calibration.update(masks((2, 6)), by_rule([0.92], [0.2]), masks())
    calibration.images = 1
    return calibration


def test_by_hand(by_hand):
    content = by_hand.content()
    assert {key: content[key] for key in ("images", "queries", "right", "true_masks")} == {
        "images": 1,
        "queries": 6,
        "right": 3,
        "true_masks": 3,
    }
    ious = {0.95: 1, 0.9: 0.75, 0.7: 0.75, 0.5: 0.5, 0.2: 0, 0.1: 1 / 7}
    # only 0.95 and 0.9 could share one of 15 bins, and do not: 0.9 x 15 = 13.5, 0.95 x 15 = 14.25
    match = content["scores"]["match"]
    assert match["ece"] == pytest.approx(sum(abs(score - iou) for score, iou in ious.items()) / 6)
    assert match["auc"] == 1
    assert len(match["bins"]) == BINS and sum(each["queries"] for each in match["bins"]) == 6
    assert match["bins"][14] == {"queries": 1, "right": 1, "score": pytest.approx(0.95), "iou": 1}
    assert match["bins"][0] == {"queries": 0, "right": 0, "score": None, "iou": None}
    # found without duplicates: 0.95, 0.7, 0.5, 0.2, 0.1; the first two are right: F1 of 2 x 2 / (2 + 3) above 0.5
    assert (match["threshold"], match["f1"]) == (0.51, 0.8)
    # predicted IoU: bin 12 has 0.8; bin 13 has 0.9, 0.9, 0.92 with IoUs 3/4, 1/7, 0; 0.95 and 0.5 are alone
    iou = content["scores"]["iou"]
    assert iou["bins"][13] == {
        "queries": 3,
        "right": 1,
        "score": pytest.approx(2.72 / 3),
        "iou": pytest.approx((0.75 + 1 / 7) / 3),
    }
    assert iou["ece"] == pytest.approx((abs(2.72 - 0.75 - 1 / 7) + 0.05 + 0.25 + 0.3) / 6)
    # right 0.95, 0.9, 0.5 against wrong 0.9, 0.8, 0.92: 3 + 1.5 + 0 of 9 pairs
    assert iou["auc"] == pytest.approx(4.5 / 9)
    # found: 0.95 (right), 0.92, 0.9, 0.8, 0.5 (right); F1: 2/4, 2/5, 2/6, 2/7, 4/8: the lowest of equals
    assert (iou["threshold"], iou["f1"]) == (0.01, 0.5)
    json.dumps(content)


def test_a_ground_truth_mask_is_hit_once():
    """Two masks of IoU 2/3 with the same object, and of 1/3 with each other, are one hit and one false alarm."""
    calibration = Calibration(("iou",), nms_threshold=0.5)
    calibration.update(masks((0, 4), (2, 6)), {"iou": torch.tensor([0.5, 0.9])}, masks((0, 6)))
    scores = calibration.content()["scores"]["iou"]
    assert (scores["threshold"], scores["f1"]) == (0.51, 1.0)
    assert calibration.content()["right"] == 2


def test_a_score_of_1_is_in_the_last_bin_and_a_threshold_is_inclusive():
    calibration = Calibration(("iou",), nms_threshold=0.5)
    calibration.update(masks((0, 4), (8, 12)), {"iou": torch.tensor([1.0, 0.5])}, masks((0, 4), (8, 12)))
    scores = calibration.content()["scores"]["iou"]
    assert scores["bins"][-1]["queries"] == 1 and scores["auc"] is None
    assert calibration.found[0].tolist() == [2] * 50 + [1] * 49


def filled(images, rules=RULES):
    """Random queries; the content depends on the numbers of the images alone."""
    calibration = Calibration(rules, nms_threshold=0.5)
    for image in images:
        generator = torch.Generator().manual_seed(image)
        found, truth = (torch.rand(count, 1, 12, generator=generator) < 0.5 for count in (5, image % 3))
        calibration.update(found, {rule: torch.rand(5, generator=generator) for rule in rules}, truth)
        calibration.images += 1
    return calibration


def test_merged_parts_equal_the_whole_in_any_order():
    order = np.random.default_rng(0).permutation(24).tolist()
    whole = filled(order[:7])
    for part in (filled([]), filled(order[7:])):
        whole.merge(part)
    assert whole.content() == filled(range(24)).content()  # bit-exact
    assert whole.content() != filled(range(23)).content()


def test_nothing_right_has_no_threshold_and_no_query_is_an_error():
    calibration = Calibration(RULES, nms_threshold=0.5)
    calibration.skipped["a.jpg"] = "cut"
    with pytest.raises(ValueError, match="nothing to calibrate with: no query on 0 images, 1 skipped"):
        calibration.content()
    calibration.update(masks((0, 4)), by_rule([0.5]), masks())
    assert calibration.content()["scores"]["iou"].items() >= {"threshold": None, "f1": 0, "auc": None}.items()


def test_the_ground_truth_of_prompts():
    segment_map = np.array([[1, 1, 2, 3, 4, 0]])
    classes = {1: (0, 0), 2: (0, 0), 3: (1, 0), 4: (1, 1)}  # of class 1 there is a crowd too
    segments = [{"id": i, "category_id": c, "iscrowd": crowd} for i, (c, crowd) in classes.items()]
    inputs = {"height": 1, "width": 6, "class_ids": [0, 1, 2, 3], "num_classes": 4}
    truth = Truth(segment_map, segments, absent=[2], not_exhaustive=[3])
    first, crowd, absent, unclear = true_masks(Example(inputs, truth))
    assert first.astype(int).tolist() == [[[1, 1, 0, 0, 0, 0]], [[0, 0, 1, 0, 0, 0]]]
    assert absent.shape == (0, 1, 6) and crowd is None and unclear is None
    overlapping = [{"category_id": 2, "segmentation": encode_mask(segment_map > 0), "iscrowd": 0}]
    given = true_masks(Example(inputs, truth._replace(instances=overlapping)))
    assert [None if m is None else m.sum() for m in given] == [0, 0, 5, None]
    referents = [segment_map == 1, segment_map == 9]
    expressions = true_masks(Example({"prompts": ["a", "b"]}, Truth(np.zeros((0, 0)), referents=referents)))
    assert [mask.shape for mask in expressions] == [(1, 1, 6), (0, 1, 6)]
