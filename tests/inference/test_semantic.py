"""Semantic segmentation: the closed form against a literal softmax over the vocabulary, sums, ties, no queries."""

import math

import pytest
import torch
from one_task import semantic, semantic_scores, strips
from torch.nn import functional as F

from openworldsam.inference import InferenceOptions, Queries
from openworldsam.inference import queries as queries_module

SOFTMAX, SCORE = InferenceOptions(semantic_weight="softmax"), InferenceOptions(semantic_weight="score")
SIZE = (11, 8)


def random_queries(labels, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(labels)
    logits = 3 * torch.randn(len(labels), 5, 5, generator=generator)
    return Queries(logits, torch.rand(len(labels), generator=generator), labels)


def literal_scores(queries, size, num_classes, weight):
    """All C classes: each query's score in a vector, its softmax (or itself) times the query's probabilities."""
    probability = F.interpolate(queries.logits[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    weights = torch.zeros(len(queries.scores), num_classes + 1)
    weights[torch.arange(len(queries.scores)), queries.labels] = queries.scores
    if weight == "softmax":
        weights = weights.softmax(dim=1)
    return torch.einsum("qc,qhw->chw", weights[:, :num_classes], probability)


@pytest.mark.parametrize("options", [SOFTMAX, SCORE], ids=["softmax", "score"])
@pytest.mark.parametrize(
    ("labels", "num_classes"), [([3, 1, 3, 3, 0, 1, 4], 6), ([2], 3), ([7, 7, 7], 8), ([132, 5, 80, 5], 133)]
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_literal_rule(options, labels, num_classes, seed):
    queries = random_queries(labels, seed)
    literal = literal_scores(queries, SIZE, num_classes, options.semantic_weight)
    asked, scores = semantic_scores(queries, SIZE, num_classes, options)
    assert asked.tolist() == sorted(set(labels))
    assert torch.allclose(scores, literal[asked], atol=1e-6)
    assert torch.equal(semantic(queries, SIZE, num_classes, options), literal.argmax(dim=0))


def test_softmax_weights_by_hand():
    queries = strips([0.5, 0.25], [1, 0], [0.0], [math.log(3)])
    _, scores = semantic_scores(queries, (1, 1), 2, SOFTMAX)
    own, other = math.exp(0.5), math.exp(0.25)
    expected = [0.5 / (own + 2) + 0.75 * other / (other + 2), 0.5 * own / (own + 2) + 0.75 / (other + 2)]
    assert scores.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options", [SOFTMAX, SCORE], ids=["softmax", "score"])
def test_queries_of_a_label_add_up(options):
    one, three = (
        strips([0.9, 0.5], [0, 1], [2], [1]),
        strips([0.9, 0.5, 0.5, 0.5], [0, 1, 1, 1], [2], [1], [1], [1]),
    )
    assert semantic(one, (1, 1), 2, options) == 0
    assert semantic(three, (1, 1), 2, options) == 1


def test_score_weights_by_hand():
    queries = strips([0.5, 0.25, 0.75], [4, 9, 4], [0, 0], [math.log(3), 0], [0, math.log(3)])
    labels, scores = semantic_scores(queries, (1, 2), 10, SCORE)
    assert labels.tolist() == [4, 9]
    assert scores[:, 0].tolist() == [pytest.approx([0.625, 0.8125]), pytest.approx([0.1875, 0.125])]


@pytest.mark.parametrize("options", [SOFTMAX, SCORE], ids=["softmax", "score"])
def test_no_threshold_applies_and_every_pixel_gets_a_label(options):
    queries = strips([0.01, 0.02], [3, 6], [-9, -5, -9], [-9, -9, -5])
    assert semantic(queries, (1, 3), 8, options).tolist() == [[6, 3, 6]]


@pytest.mark.parametrize("options", [SOFTMAX, SCORE], ids=["softmax", "score"])
def test_of_equal_scores_the_smallest_label_wins(options):
    queries = strips([0.5, 0.5, 0.5], [7, 2, 5], [1, 1], [1, 1], [1, 2])
    assert semantic(queries, (1, 2), 8, options).tolist() == [[2, 5]]


@pytest.mark.parametrize("options", [SOFTMAX, SCORE], ids=["softmax", "score"])
def test_the_map_is_the_arg_max_of_the_scores(options):
    queries = random_queries([6, 1, 6, 3, 3, 1, 9, 0], 5)
    labels, scores = semantic_scores(queries, SIZE, 10, options)
    assert torch.equal(semantic(queries, SIZE, 10, options), labels[scores.argmax(dim=0)])


@pytest.mark.parametrize("options", [SOFTMAX, SCORE], ids=["softmax", "score"])
@pytest.mark.parametrize("masks_that_fit", [1, 3])
def test_chunks_change_nothing(monkeypatch, options, masks_that_fit):
    queries = random_queries([2, 0, 2, 2, 1, 2, 0, 2], 3)
    whole, label_map = semantic_scores(queries, SIZE, 4, options)[1], semantic(queries, SIZE, 4, options)
    monkeypatch.setattr(queries_module, "CHUNK_BYTES", masks_that_fit * 4 * SIZE[0] * SIZE[1])
    assert torch.allclose(semantic_scores(queries, SIZE, 4, options)[1], whole, atol=1e-6)
    assert torch.equal(semantic(queries, SIZE, 4, options), label_map)


def no_queries():
    return Queries(torch.zeros(0, 4, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("options", [SOFTMAX, SCORE], ids=["softmax", "score"])
def test_without_queries_every_pixel_is_minus_one(options):
    label_map = semantic(no_queries(), (2, 3), 5, options)
    assert label_map.dtype == torch.int64
    assert label_map.tolist() == [[-1] * 3] * 2


def test_without_queries_there_are_no_scores():
    labels, scores = semantic_scores(no_queries(), (2, 3), 5, SCORE)
    assert labels.shape == (0,)
    assert scores.shape == (0, 2, 3)
