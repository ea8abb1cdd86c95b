"""Instances: inclusive score threshold, strict mask threshold, duplicates by mask or by box, order, top k."""

import pytest
import torch

from openworldsam.inference import InferenceOptions, MaskRows, instance_inference
from openworldsam.inference import rows as rows_module


def strip_rows(scores, labels, *strips):
    """Rows one pixel high, given as logits."""
    return MaskRows(torch.tensor(strips).float()[:, None], torch.tensor(scores), torch.tensor(labels))


def random_rows(num_rows=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MaskRows(
        4 * torch.randn(num_rows, 4, 4, generator=generator) - 5,
        torch.randint(8, 16, (num_rows,), generator=generator) / 16,
        torch.randint(0, 3, (num_rows,), generator=generator),
    )


def assert_same(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_score_of_exactly_the_threshold_counts():
    rows = strip_rows([0.7, 0.6999, 0.75], [0, 1, 2], [1, -1], [1, -1], [1, -1])
    found = instance_inference(rows, (1, 2), InferenceOptions(score_threshold=0.7))
    assert found.labels.tolist() == [2, 0]


def test_a_pixel_belongs_to_the_mask_only_where_its_logit_exceeds_zero():
    rows = strip_rows([0.9], [0], [0.0, 1e-6, -1e-6, 5.0])
    assert instance_inference(rows, (1, 4), InferenceOptions()).masks.tolist() == [[[False, True, False, True]]]


def test_logits_are_resized_before_they_are_thresholded():
    found = instance_inference(strip_rows([0.9], [0], [3, -1]), (1, 4), InferenceOptions())
    assert found.masks.tolist() == [[[True, True, False, False]]]
    assert found.boxes.tolist() == [[0, 0, 2, 1]]


@pytest.mark.parametrize("rule", ["mask", "box"])
def test_results_come_best_first_with_their_labels_masks_and_boxes(rule):
    strips = [1, -1, -1, -1], [-1, 1, 1, -1], [-1, -1, -1, 1], [1, 1, 1, 1]
    rows = strip_rows([0.7, 0.9, 0.8, 0.9], [4, 5, 6, 7], *strips)
    found = instance_inference(rows, (1, 4), InferenceOptions(instance_nms=rule))
    assert found.labels.tolist() == [5, 7, 6, 4]
    assert torch.equal(found.scores, torch.tensor([0.9, 0.9, 0.8, 0.7]))
    assert found.boxes.tolist() == [[1, 0, 3, 1], [0, 0, 4, 1], [3, 0, 4, 1], [0, 0, 1, 1]]
    assert torch.equal(found.masks, rows.logits[[1, 3, 2, 0]] > 0)


@pytest.mark.parametrize("rule", ["mask", "box"])
def test_rows_without_a_pixel_vanish_and_remove_nothing(rule):
    rows = strip_rows([0.9, 0.8, 0.7], [0, 0, 0], [-1, -1], [0, 0], [1, -1])
    found = instance_inference(rows, (1, 2), InferenceOptions(instance_nms=rule))
    assert found.masks.tolist() == [[[True, False]]]
    assert found.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("rule", ["mask", "box"])
def test_of_duplicates_in_a_class_the_best_stays(rule):
    rows = strip_rows([0.8, 0.9, 0.85], [3, 3, 3], [1, 1, 1, -1], [1, 1, 1, 1], [-1, -1, -1, 1])
    found = instance_inference(rows, (1, 4), InferenceOptions(instance_nms=rule))
    assert torch.equal(found.scores, torch.tensor([0.9, 0.85]))


def test_duplicates_of_another_class_go_by_box_only():
    rows = strip_rows([0.8, 0.9], [3, 4], [1, 1], [1, 1])
    assert instance_inference(rows, (1, 2), InferenceOptions(instance_nms="mask")).labels.tolist() == [4, 3]
    assert instance_inference(rows, (1, 2), InferenceOptions(instance_nms="box")).labels.tolist() == [4]


@pytest.mark.parametrize("rule", ["mask", "box"])
def test_an_overlap_of_exactly_the_nms_threshold_stays(rule):
    rows = strip_rows([0.9, 0.8], [0, 0], [1, 1, 1, -1], [-1, 1, 1, 1])
    assert len(instance_inference(rows, (1, 4), InferenceOptions(instance_nms=rule)).scores) == 2
    strict = InferenceOptions(instance_nms=rule, nms_threshold=0.49)
    assert len(instance_inference(rows, (1, 4), strict).scores) == 1


def test_a_row_below_the_score_threshold_removes_nothing():
    rows = strip_rows([0.9, 0.8], [0, 0], [1, 1], [1, 1])
    assert len(instance_inference(rows, (1, 2), InferenceOptions(score_threshold=0.5)).scores) == 1
    assert len(instance_inference(rows, (1, 2), InferenceOptions(score_threshold=0.95)).scores) == 0


def test_top_k_counts_rows_before_duplicates_and_empty_masks_go():
    rows = strip_rows([0.7, 0.9, 0.8, 0.75], [0, 1, 1, 2], [1, -1], [-1, 1], [-1, 1], [1, 1])
    by_top_k = {
        k: instance_inference(rows, (1, 2), InferenceOptions(top_k=k)).labels.tolist() for k in (0, 1, 2, 3, 4, 99)
    }
    assert by_top_k == {0: [1, 2, 0], 1: [1], 2: [1], 3: [1, 2], 4: [1, 2, 0], 99: [1, 2, 0]}


def test_top_k_does_not_lift_the_score_threshold():
    rows = strip_rows([0.5, 0.9], [0, 1], [1, -1], [-1, 1])
    assert instance_inference(rows, (1, 2), InferenceOptions(top_k=2)).labels.tolist() == [1]


def test_top_k_takes_the_earlier_of_equal_rows():
    rows = MaskRows(torch.ones(20, 1, 1), torch.full((20,), 0.9), torch.arange(20))
    assert instance_inference(rows, (1, 1), InferenceOptions(top_k=3)).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", ["mask", "box"])
@pytest.mark.parametrize("scores", [[], [0.1]])
def test_nothing_found(rule, scores):
    rows = MaskRows(torch.ones(len(scores), 2, 2), torch.tensor(scores), torch.zeros(len(scores), dtype=torch.long))
    found = instance_inference(rows, (3, 5), InferenceOptions(instance_nms=rule))
    assert [tuple(part.shape) for part in found] == [(0, 3, 5), (0,), (0,), (0, 4), (0, 2, 2)]
    assert (found.masks.dtype, found.labels.dtype) == (torch.bool, torch.int64)


@pytest.mark.parametrize("rule", ["mask", "box"])
@pytest.mark.parametrize("masks_that_fit", [1, 7])
def test_chunks_change_nothing(monkeypatch, rule, masks_that_fit):
    rows, size, options = random_rows(), (13, 9), InferenceOptions(instance_nms=rule, score_threshold=0.6)
    whole = instance_inference(rows, size, options)
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", masks_that_fit * 4 * 13 * 9)
    assert_same(instance_inference(rows, size, options), whole)
    assert 1 < len(whole.scores) < 40


def test_the_rows_given_are_left_as_they_were():
    rows = random_rows()
    before = MaskRows(*(part.clone() for part in rows))
    instance_inference(rows, (5, 5), InferenceOptions(score_threshold=0.0))
    assert_same(rows, before)
