"""Referring metrics: hand-calculated cases."""

import numpy as np
import pytest

from openworldsam.evaluation.metrics import ReferringScores


def scores(*pairs):
    accumulator = ReferringScores()
    for predicted, truth in pairs:
        accumulator.update(np.array([predicted], dtype=bool), np.array([truth], dtype=bool))
    return accumulator.compute().overall


def first(count, length=10):
    return [1] * count + [0] * (length - count)


def test_by_hand():
    overall = scores((first(7), first(10)), (first(1), first(2)), (first(0), first(4)))
    assert overall["cIoU"] == pytest.approx(100 * 8 / 16)
    assert overall["mIoU"] == pytest.approx(100 * (0.7 + 0.5 + 0) / 3)
    assert [overall[f"precision@{t}"] for t in (0.5, 0.6, 0.7, 0.8, 0.9)] == pytest.approx(
        [200 / 3, 100 / 3, 100 / 3, 0, 0]
    )


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_an_iou_equal_to_the_threshold_counts(tenths):
    overall = scores((first(tenths), first(10)))
    assert [overall[f"precision@{t / 10}"] for t in range(5, 10)] == [100 * (t <= tenths) for t in range(5, 10)]


def test_two_empty_masks():
    overall = scores((first(0), first(0)))
    assert (overall["cIoU"], overall["mIoU"], overall["precision@0.9"]) == (None, 100, 100)


def test_no_expression_gives_none():
    assert set(scores().values()) == {None}


def test_sizes_must_match():
    with pytest.raises(ValueError, match=r"\(1, 3\), the ground truth \(3, 1\)"):
        ReferringScores().update(np.zeros((1, 3), bool), np.zeros((3, 1), bool))
