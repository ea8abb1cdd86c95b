"""Instances: inclusive score threshold, strict mask threshold, duplicates by mask or by box, order, top k."""

import copy

import pytest
import torch
from one_task import instances, strips

from openworldsam.inference import InferenceOptions, Queries
from openworldsam.inference import queries as queries_module


def random_queries(num_queries=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Queries(
        4 * torch.randn(num_queries, 4, 4, generator=generator) - 5,
        torch.randint(8, 16, (num_queries,), generator=generator) / 16,
        torch.randint(0, 3, (num_queries,), generator=generator),
    )


def assert_same(found, expected):
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=0, equal_nan=True)


def test_a_score_of_exactly_the_threshold_counts():
    queries = strips([0.7, 0.6999, 0.75], [0, 1, 2], [1, -1], [1, -1], [1, -1])
    found = instances(queries, (1, 2), InferenceOptions(score_threshold=0.7))
    assert found.labels.tolist() == [2, 0]


def test_a_pixel_belongs_to_the_mask_only_where_its_logit_exceeds_zero():
    queries = strips([0.9], [0], [0.0, 1e-6, -1e-6, 5.0])
    assert instances(queries, (1, 4), InferenceOptions()).masks.tolist() == [[[False, True, False, True]]]


def test_logits_are_resized_before_they_are_thresholded():
    found = instances(strips([0.9], [0], [3, -1]), (1, 4), InferenceOptions())
    assert found.masks.tolist() == [[[True, True, False, False]]]
    assert found.boxes.tolist() == [[0, 0, 2, 1]]


@pytest.mark.parametrize("rule", ["mask", "box"])
def test_results_come_best_first_with_their_labels_masks_and_boxes(rule):
    lines = [1, -1, -1, -1], [-1, 1, 1, -1], [-1, -1, -1, 1], [1, 1, 1, 1]
    queries = strips([0.7, 0.9, 0.8, 0.9], [4, 5, 6, 7], *lines)
    found = instances(queries, (1, 4), InferenceOptions(instance_nms=rule))
    assert found.labels.tolist() == [5, 7, 6, 4]
    assert torch.equal(found.scores, torch.tensor([0.9, 0.9, 0.8, 0.7]))
    assert found.boxes.tolist() == [[1, 0, 3, 1], [0, 0, 4, 1], [3, 0, 4, 1], [0, 0, 1, 1]]
    assert torch.equal(found.masks, queries.logits[[1, 3, 2, 0]] > 0)


@pytest.mark.parametrize("rule", ["mask", "box"])
def test_queries_without_a_pixel_vanish_and_remove_nothing(rule):
    queries = strips([0.9, 0.8, 0.7], [0, 0, 0], [-1, -1], [0, 0], [1, -1])
    found = instances(queries, (1, 2), InferenceOptions(instance_nms=rule))
    assert found.masks.tolist() == [[[True, False]]]
    assert found.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("rule", ["mask", "box"])
def test_of_duplicates_in_a_class_the_best_stays(rule):
    queries = strips([0.8, 0.9, 0.85], [3, 3, 3], [1, 1, 1, -1], [1, 1, 1, 1], [-1, -1, -1, 1])
    found = instances(queries, (1, 4), InferenceOptions(instance_nms=rule))
    assert torch.equal(found.scores, torch.tensor([0.9, 0.85]))


def test_duplicates_of_another_class_go_by_box_only():
    queries = strips([0.8, 0.9], [3, 4], [1, 1], [1, 1])
    assert instances(queries, (1, 2), InferenceOptions(instance_nms="mask")).labels.tolist() == [4, 3]
    assert instances(queries, (1, 2), InferenceOptions(instance_nms="box")).labels.tolist() == [4]


@pytest.mark.parametrize("rule", ["mask", "box"])
def test_an_overlap_of_exactly_the_nms_threshold_stays(rule):
    queries = strips([0.9, 0.8], [0, 0], [1, 1, 1, -1], [-1, 1, 1, 1])
    assert len(instances(queries, (1, 4), InferenceOptions(instance_nms=rule)).scores) == 2
    strict = InferenceOptions(instance_nms=rule, nms_threshold=0.49)
    assert len(instances(queries, (1, 4), strict).scores) == 1


def test_a_query_below_the_score_threshold_removes_nothing():
    queries = strips([0.9, 0.8], [0, 0], [1, 1], [1, 1])
    assert len(instances(queries, (1, 2), InferenceOptions(score_threshold=0.5)).scores) == 1
    assert len(instances(queries, (1, 2), InferenceOptions(score_threshold=0.95)).scores) == 0


def test_top_k_counts_queries_before_duplicates_and_empty_masks_go():
    queries = strips([0.7, 0.9, 0.8, 0.75], [0, 1, 1, 2], [1, -1], [-1, 1], [-1, 1], [1, 1])
    by_top_k = {k: instances(queries, (1, 2), InferenceOptions(top_k=k)).labels.tolist() for k in (0, 1, 2, 3, 4, 99)}
    assert by_top_k == {0: [1, 2, 0], 1: [1], 2: [1], 3: [1, 2], 4: [1, 2, 0], 99: [1, 2, 0]}


def test_top_k_does_not_lift_the_score_threshold():
    queries = strips([0.5, 0.9], [0, 1], [1, -1], [-1, 1])
    assert instances(queries, (1, 2), InferenceOptions(top_k=2)).labels.tolist() == [1]


def test_top_k_takes_the_earlier_of_equal_queries():
    queries = Queries(torch.ones(20, 1, 1), torch.full((20,), 0.9), torch.arange(20))
    assert instances(queries, (1, 1), InferenceOptions(top_k=3)).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", ["mask", "box"])
@pytest.mark.parametrize("scores", [[], [0.1]])
def test_nothing_found(rule, scores):
    queries = Queries(torch.ones(len(scores), 2, 2), torch.tensor(scores), torch.zeros(len(scores), dtype=torch.long))
    found = instances(queries, (3, 5), InferenceOptions(instance_nms=rule))
    assert [tuple(part.shape) for part in found] == [(0, 3, 5), (0,), (0,), (0, 4), (0, 2), (0, 2, 2)]
    assert (found.masks.dtype, found.labels.dtype) == (torch.bool, torch.int64)


@pytest.mark.parametrize("rule", ["mask", "box"])
@pytest.mark.parametrize("masks_that_fit", [1, 7])
def test_chunks_change_nothing(monkeypatch, rule, masks_that_fit):
    queries, size, options = random_queries(), (13, 9), InferenceOptions(instance_nms=rule, score_threshold=0.6)
    whole = instances(queries, size, options)
    monkeypatch.setattr(queries_module, "CHUNK_BYTES", masks_that_fit * 4 * 13 * 9)
    assert_same(instances(queries, size, options), whole)
    assert 1 < len(whole.scores) < 40


def test_the_queries_given_are_left_as_they_were():
    queries = random_queries()
    before = copy.deepcopy(queries)
    instances(queries, (5, 5), InferenceOptions(score_threshold=0.0))
    assert_same(queries[:3], before[:3])
