"""Referring: the one best mask of every label, whatever its score, or the union of all accepted ones."""

import torch
from one_task import question, referring, strips

from openworldsam.inference import InferenceOptions, Queries, infer
from openworldsam.inference import queries as queries_module


def test_each_prompt_gets_its_own_best_query_in_the_order_of_prompts():
    best = referring(strips([0.1, 0.9, 0.3, 0.2], [2, 0, 2, 0], [1, 1], [1, -1], [-1, 1], [1, 1]), (1, 2))
    assert torch.equal(best.scores, torch.tensor([0.9, 0, 0.3]))
    assert best.masks.tolist() == [[[True, False]], [[False, False]], [[False, True]]]  # nothing for prompt 1
    found = best.found()
    assert found.labels.tolist() == [0, 2] and found.masks.tolist() == [[[True, False]], [[False, True]]]


def test_no_threshold_applies():
    best = referring(strips([0.0, 1e-6], [0, 1], [1, 1], [1, 1]), (1, 2))
    assert best.masks.all()
    assert best.scores.tolist() == [0.0, torch.tensor(1e-6).item()]


def test_of_equal_scores_the_first_query_wins():
    queries = strips([0.4, 0.6, 0.6, 0.6], [0, 0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1])
    assert referring(queries, (1, 3)).masks.tolist() == [[[True, False, False]]]


def test_only_logits_above_zero_belong_to_the_mask():
    best = referring(strips([0.9], [0], [0.0, 1e-6, -1e-6]), (1, 3))
    assert best.masks.tolist() == [[[False, True, False]]]


def test_the_best_query_counts_even_if_its_mask_is_empty():
    best = referring(strips([0.9, 0.8], [0, 0], [-1, -1], [1, 1]), (1, 2))
    assert not best.masks.any()
    assert torch.equal(best.scores, torch.tensor([0.9]))


def test_logits_are_resized_before_they_are_thresholded():
    best = referring(strips([0.9], [0], [3, -1]), (2, 4))
    assert best.masks.tolist() == [[[True, True, False, False]] * 2]


def test_no_queries():
    best = referring(Queries(torch.zeros(0, 4, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)), (3, 2))
    assert [tuple(part.shape) for part in best] == [(0, 3, 2), (0,), (0, 2), (0, 4, 4)]


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries = Queries(
        torch.randn(30, 4, 4, generator=generator), torch.rand(30, generator=generator), torch.arange(30) % 6
    )
    whole = referring(queries, (9, 11))
    monkeypatch.setattr(queries_module, "CHUNK_BYTES", 2 * 4 * 9 * 11)
    chunked = referring(queries, (9, 11))
    torch.testing.assert_close(tuple(chunked), tuple(whole), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(whole.scores, torch.stack([queries.scores[queries.labels == label].max() for label in range(6)]))


def targets(queries, size, options=InferenceOptions()):  # noqa: B008 (immutable)
    asked = question(queries, size)._replace(generalized=True)
    return infer([queries], ("referring",), asked, options)["referring"]


def test_any_number_of_targets_is_the_union_of_the_accepted_masks():
    # the first expression has two instances and a duplicate, the second one below the threshold, the third one
    queries = strips(
        [0.9, 0.7, 0.8, 0.69, 0.75],
        [0, 0, 0, 1, 2],
        [1, 1, -1, -1, -1],
        [-1, -1, -1, 1, -1],
        [1, 1, 1, -1, -1],
        [1, 1, 1, 1, 1],
        [1, 1, -1, -1, -1],
    )
    found = targets(queries, (1, 5))
    expected = [[True, True, False, True, False], [False] * 5, [True, True, False, False, False]]
    assert found.masks[:, 0].tolist() == expected
    assert torch.equal(found.scores, torch.tensor([0.9, 0, 0.75]))
    assert found.found().labels.tolist() == [0, 2] and found.found().logits is None
    # expressions do not compete, whatever the rule for instances
    released = InferenceOptions(instance_nms="box", top_k=1)
    assert torch.equal(targets(queries, (1, 5), released).masks, found.masks)


def test_any_number_of_targets_without_queries():
    found = targets(Queries(torch.zeros(0, 4, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)), (3, 2))
    assert found.masks.shape == (0, 3, 2) and found.scores.shape == (0,)
