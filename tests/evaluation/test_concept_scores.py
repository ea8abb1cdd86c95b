"""SA-Co's metrics: hand-calculated cases, and the formulas once more in plain loops."""

import itertools
import math

import numpy as np
import pytest

from openworldsam.data.records.rle import encode_mask
from openworldsam.evaluation.metrics import ConceptScores

SIZE = (1, 20)
EMPTY = {"cgF1", "cgF1@0.5", "cgF1@0.75", "pmF1", "pmF1@0.5", "pmF1@0.75", "IL_MCC"}


def columns(start, stop):
    mask = np.zeros(SIZE, bool)
    mask[:, start:stop] = True
    return mask


def truths(*masks, phrase=1, **more):
    return [{"category_id": phrase, "segmentation": encode_mask(mask), **more} for mask in masks]


def predictions(*masks, phrase=1, score=0.9):
    return truths(*masks, phrase=phrase, score=score)


def scores(*images):
    accumulator = ConceptScores()
    for phrases, predicted, *truth in images:
        accumulator.update(SIZE, phrases, predicted, *truth)
    return accumulator.compute().overall


def test_by_hand():
    """Three phrases: one found with IoU .8 and a mask too many, one rightly absent, one missed."""
    one = ([1], predictions(columns(0, 8), columns(15, 20)), truths(columns(0, 10)))
    found = scores(one, ([1], [], []), ([1], [], truths(columns(3, 4))))
    # up to .8 (7 thresholds) TP 1, FP+ 1, FN 1; above, TP 0
    precision, recall = 1 / 2.0001, 1 / 2.0001
    f1 = 100 * 2 * precision * recall / (precision + recall + 1e-4)
    mcc = (1 * 1 - 0 * 1) / (math.sqrt((1 + 0) * (1 + 1) * (1 + 0) * (1 + 1)) + 1e-6)
    assert found["IL_MCC"] == pytest.approx(mcc) == pytest.approx(0.5, abs=1e-6)
    assert found["pmF1@0.5"] == found["pmF1@0.75"] == pytest.approx(f1)
    assert found["pmF1"] == pytest.approx(0.7 * f1) and found["cgF1"] == pytest.approx(0.7 * f1 * mcc)
    assert found["cgF1@0.5"] == pytest.approx(f1 * mcc)


def test_a_prediction_counts_from_a_score_of_a_half():
    truth = truths(columns(0, 10))
    for score, expected in ((0.5, 100), (0.4999, 0)):
        image = ([1], predictions(columns(0, 10), score=score), truth)
        assert scores(image)["pmF1"] == pytest.approx(expected, abs=0.1)


def test_false_positives_of_absent_phrases_cost_the_correlation_alone():
    right = ([1, 2], predictions(columns(0, 10)), truths(columns(0, 10)))
    wrong = ([1, 2], [*right[1], *predictions(columns(3, 5), columns(6, 7), phrase=2)], right[2])
    assert scores(right)["pmF1"] == scores(wrong)["pmF1"] == pytest.approx(100, abs=0.1)
    assert scores(right)["IL_MCC"] == pytest.approx(1) and scores(wrong)["IL_MCC"] == 0
    worse = ([1, 2], predictions(columns(3, 5), phrase=2), right[2])
    assert scores(worse)["IL_MCC"] == pytest.approx(-1) and scores(worse)["cgF1"] == 0


def test_pairs_are_chosen_for_the_largest_sum():
    # greedily, the first prediction would take the second ground truth (.6) and leave the other with nothing
    truth = truths(columns(0, 5), columns(4, 10))
    found = scores(([1], predictions(columns(0, 10), columns(5, 10)), truth))
    assert found["pmF1@0.5"] == pytest.approx(100, abs=0.1) and found["pmF1@0.75"] == pytest.approx(50, abs=0.1)


def test_an_iou_equal_to_the_threshold_counts():
    for tenths in range(10, 20):
        found = scores(([1], predictions(columns(0, tenths)), truths(columns(0, 20))))
        assert found["pmF1"] == pytest.approx(10 * (tenths - 9), abs=0.1)


def test_of_several_annotators_the_most_favourable_counts():
    predicted = predictions(columns(0, 10))
    many, one, none = truths(columns(0, 5), columns(5, 10)), truths(columns(0, 9)), []
    assert scores(([1], predicted, many, one)) == scores(([1], predicted, one))
    assert scores(([1], [], many, none)) == scores(([1], [], none))
    assert scores(([1], predicted, none, many)) == scores(([1], predicted, many))


def test_a_phrase_with_a_crowd_and_what_was_not_asked_are_left_out():
    crowd = truths(columns(0, 10), iscrowd=1)
    plain = ([2], predictions(columns(0, 4), phrase=2), truths(columns(0, 4), phrase=2))
    more = ([1, 2], [*plain[1], *predictions(columns(0, 10)), *predictions(columns(1, 2), phrase=3)], plain[2] + crowd)
    assert scores(plain) == scores(more)


def test_nothing_asked_gives_none():
    assert scores() == scores(([], predictions(columns(0, 1)), [])) == dict.fromkeys(EMPTY)


@pytest.mark.parametrize("score", [float("nan"), None, "1"])
def test_a_score_that_is_no_number_is_refused_and_leaves_the_counts(score):
    accumulator = ConceptScores()
    with pytest.raises(ValueError, match="score must be a finite number"):
        accumulator.update(SIZE, [1], predictions(columns(0, 1), score=score), [])
    assert accumulator.compute().overall == dict.fromkeys(EMPTY)


def plain_scores(units):
    """The formulas of SA-Co in loops over (predicted masks, true masks), without Hungarian matching or arrays."""
    f1s, cells = [], dict.fromkeys(itertools.product((True, False), repeat=2), 0)
    for predicted, true in units:
        cells[bool(true), bool(predicted)] += 1
    for hundredths in range(50, 100, 5):
        tp = fp = fn = 0
        for predicted, true in units:
            hits = sum(hundredths <= 100 * iou for iou in best_pairs(predicted, true))
            tp, fn = tp + hits, fn + len(true) - hits
            fp += len(predicted) - hits if true and predicted else 0
        precision, recall = tp / (tp + fp + 1e-4), tp / (tp + fn + 1e-4)
        f1s.append(2 * precision * recall / (precision + recall + 1e-4))
    tp, fp, fn, tn = (cells[key] for key in ((True, True), (False, True), (True, False), (False, False)))
    mcc = (tp * tn - fp * fn) / (math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) + 1e-6)
    named = {"": sum(f1s) / 10, "@0.5": f1s[0], "@0.75": f1s[5]}
    result = {f"cgF1{name}": 100 * f1 * mcc for name, f1 in named.items()}
    return result | {f"pmF1{name}": 100 * f1 for name, f1 in named.items()} | {"IL_MCC": mcc}


def best_pairs(predicted, true):
    """The IoUs of the assignment with the largest sum, of all assignments."""
    few, many = sorted((predicted, true), key=len)
    assignments = ([iou(a, b) for a, b in zip(few, order, strict=False)] for order in itertools.permutations(many))
    return max(assignments, key=sum)


def iou(one, other):
    both = either = 0
    for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
        both, either = both + (a and b), either + (a or b)
    return both / either


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_the_formulas_in_plain_loops(seed):
    generator = np.random.default_rng(seed)
    accumulator, units = ConceptScores(), []
    for _ in range(12):
        predicted, truth = [], []
        for phrase in range(3):
            objects = [columns(start, start + 4) for start in generator.permutation([0, 5, 10, 15])[: phrase + 1]]
            true = objects if generator.random() < 0.6 else []
            shifted = [columns(*(np.flatnonzero(o)[[0, -1]] + [0, generator.integers(4)])) for o in objects]
            found = [mask for mask in shifted if generator.random() < 0.7]
            kept = generator.random(len(found)) < 0.8
            units.append(([mask for mask, keep in zip(found, kept, strict=True) if keep], true))
            for mask, keep in zip(found, kept, strict=True):
                predicted += predictions(mask, phrase=phrase, score=0.5 + 0.4 * (1 if keep else -1))
            truth += truths(*true, phrase=phrase)
        accumulator.update(SIZE, range(3), predicted, truth)
    assert accumulator.compute().overall == pytest.approx(plain_scores(units), rel=1e-12)
