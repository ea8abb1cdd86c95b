"""Referring metrics: hand-calculated cases."""

import numpy as np
import pytest

from openworldsam.evaluation.metrics import GeneralizedReferringScores, ReferringScores


def scores(*pairs, accumulator=None):
    accumulator = accumulator or ReferringScores()
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


def generalized(*pairs):
    return scores(*pairs, accumulator=GeneralizedReferringScores())


def test_generalized_by_hand():
    """Targets with IoU .8, and one that is missed; no target, rightly said and not."""
    found = generalized((first(8), first(10)), (first(0), first(4)), (first(0), first(0)), (first(3), first(0)))
    assert found["gIoU"] == pytest.approx(100 * (0.8 + 0 + 1 + 0) / 4)
    assert found["cIoU"] == pytest.approx(100 * 8 / (10 + 4 + 3))
    assert (found["N-acc"], found["T-acc"]) == (50, 50)
    assert [found[f"precision@{t}"] for t in (0.7, 0.8, 0.9)] == [50, 50, 0]


def test_generalized_without_one_kind_of_expression():
    assert set(generalized().values()) == {None}
    nothing = generalized((first(0), first(0)))
    assert (nothing["gIoU"], nothing["N-acc"]) == (100, 100)
    assert {nothing[key] for key in ("cIoU", "T-acc", "precision@0.7")} == {None}
    assert generalized((first(2), first(4)))["N-acc"] is None


@pytest.mark.parametrize("seed", range(4))
def test_generalized_equals_the_formulas_in_plain_loops(seed):
    generator = np.random.default_rng(seed)
    pairs = [
        [(generator.random(12) < share).astype(int).tolist() for share in generator.choice([0, 0.3, 0.9], 2)]
        for _ in range(40)
    ]
    ious, both, either, right, hits, counts = [], 0, 0, [0, 0], [0, 0, 0], [0, 0]
    for predicted, true in pairs:
        e, p = not any(true), not any(predicted)
        intersection = sum(a and b for a, b in zip(predicted, true, strict=True))
        union = sum(a or b for a, b in zip(predicted, true, strict=True))
        s = 1 if e and p else 0 if e != p else intersection / union
        ious.append(s)
        if not (e and p):
            both, either = both + intersection, either + union
        counts[e] += 1
        right[e] += p == e
        if not e:
            hits = [hit + (s >= t) for hit, t in zip(hits, (0.7, 0.8, 0.9), strict=True)]
    expected = {"gIoU": sum(ious) / len(ious), "cIoU": both / either}
    expected |= {"N-acc": right[1] / counts[1], "T-acc": right[0] / counts[0]}
    expected |= {f"precision@{t}": hit / counts[0] for t, hit in zip((0.7, 0.8, 0.9), hits, strict=True)}
    assert generalized(*pairs) == pytest.approx({name: 100 * value for name, value in expected.items()}, rel=1e-12)
