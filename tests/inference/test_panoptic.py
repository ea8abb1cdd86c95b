"""Panoptic: every rule on strips worked out by hand, and all of them against a plain loop on random masks."""

import math

import pytest
import torch
from one_task import panoptic, strips
from torch.nn import functional as F

from openworldsam.inference import InferenceOptions, Queries
from openworldsam.inference import queries as queries_module

THING, OTHER_THING, STUFF, OTHER_STUFF = 0, 1, 2, 3
IS_THING = {THING: True, OTHER_THING: True, STUFF: False, OTHER_STUFF: False}
SURE, NEVER = 20.0, -200.0  # probabilities 1 and 0


def logit(probability):
    return math.log(probability / (1 - probability))


def strip_result(scores, labels, *logits, **options):
    """Panoptic result of queries one pixel high, given as logits."""
    return panoptic(strips(scores, labels, *logits), (1, len(logits[0])), IS_THING, InferenceOptions(**options))


def loop_panoptic(queries, size, options):
    """The rules one pixel and one pair at a time: the map as lists, and (id, label, is_thing, score) of segments."""
    probability = F.interpolate(queries.logits[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    weighted = (probability * queries.scores[:, None, None]).flatten(1).tolist()
    probability = probability.flatten(1).tolist()
    scores, labels = queries.scores.tolist(), queries.labels.tolist()
    claimed = [{pixel for pixel, p in enumerate(query) if p >= 0.5} for query in probability]

    confident = [query for query, score in enumerate(scores) if score > options.score_threshold]
    survivors = []
    for query in sorted(confident, key=lambda query: (-scores[query], query)):
        overlaps = [
            len(claimed[query] & claimed[other]) / max(1, len(claimed[query] | claimed[other]))
            for other in survivors
            if labels[other] == labels[query]
        ]
        if all(overlap <= options.nms_threshold for overlap in overlaps):
            survivors.append(query)
    survivors.sort()

    num_pixels = size[0] * size[1]
    won = {query: set() for query in survivors}
    for pixel in range(num_pixels if survivors else 0):
        won[max(survivors, key=lambda query: (weighted[query][pixel], -query))].add(pixel)

    panoptic_map, segments, stuff_ids = [0] * num_pixels, [], {}
    for query in survivors:
        visible = won[query] & claimed[query]
        if not visible or len(won[query]) / len(claimed[query]) < options.overlap_threshold:
            continue
        if labels[query] not in stuff_ids:
            segments.append((len(segments) + 1, labels[query], IS_THING[labels[query]], scores[query]))
        segment_id = stuff_ids.get(labels[query], len(segments))
        if not IS_THING[labels[query]]:
            stuff_ids[labels[query]] = segment_id
        for pixel in visible:
            panoptic_map[pixel] = segment_id
    return panoptic_map, segments


def smooth_queries(seed, num_queries=24):
    """Blobs, a third of them near copies of others, with scores that tie now and then."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_queries, 4, 4, generator=generator) - 4
    copies = torch.randperm(num_queries, generator=generator)[: num_queries // 3]
    logits[copies] = logits[copies.flip(0)] + 0.5 * torch.randn(len(copies), 4, 4, generator=generator)
    scores = torch.randint(8, 21, (num_queries,), generator=generator) / 20
    return Queries(logits, scores, torch.randint(0, 4, (num_queries,), generator=generator))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "options",
    [
        InferenceOptions(),
        InferenceOptions(score_threshold=0.5, overlap_threshold=0.8),
        InferenceOptions(score_threshold=0.0, nms_threshold=0.2, overlap_threshold=0.1),
    ],
    ids=["default", "strict", "lax"],
)
def test_equals_a_plain_loop(seed, options):
    queries, size = smooth_queries(seed), (13, 17)
    expected_map, expected_segments = loop_panoptic(queries, size, options)
    result = panoptic(queries, size, IS_THING, options)
    assert result.map.flatten().tolist() == expected_map
    assert [tuple(segment)[:4] for segment in result.segments] == expected_segments
    assert len(set(expected_map)) > 2


@pytest.mark.parametrize("masks_that_fit", [1, 5])
def test_chunks_change_nothing(monkeypatch, masks_that_fit):
    queries, size, options = smooth_queries(0), (13, 17), InferenceOptions(score_threshold=0.4)
    queries.logits[16:] = queries.logits[:8]  # equal queries in different chunks
    queries.scores[16:] = queries.scores[:8]
    whole = panoptic(queries, size, IS_THING, options)
    monkeypatch.setattr(queries_module, "CHUNK_BYTES", masks_that_fit * 4 * 13 * 17)
    chunked = panoptic(queries, size, IS_THING, options)
    assert torch.equal(chunked.map, whole.map)
    assert [segment[:4] for segment in chunked.segments] == [segment[:4] for segment in whole.segments]


def test_a_score_of_exactly_the_threshold_does_not_count():
    result = strip_result([0.7, 0.7001], [THING, OTHER_THING], [SURE, -1], [-1, SURE], score_threshold=0.7)
    assert result.map.tolist() == [[0, 1]]
    assert [segment.label for segment in result.segments] == [OTHER_THING]


def test_a_probability_of_exactly_one_half_claims_the_pixel():
    assert strip_result([0.9], [THING], [0.0, -1e-3, 1.0]).map.tolist() == [[1, 0, 1]]


def test_score_times_probability_decides_a_pixel():
    result = strip_result([1.0, 0.8], [THING, OTHER_THING], [logit(0.6), SURE], [logit(0.8), SURE])
    assert result.map.tolist() == [[2, 1]]


def test_of_equal_products_the_first_query_wins():
    result = strip_result([0.9, 0.9], [OTHER_THING, THING], [1, 1], [1, 1], overlap_threshold=0.0)
    assert result.map.tolist() == [[1, 1]]
    assert [segment.label for segment in result.segments] == [OTHER_THING]


def test_a_pixel_won_with_less_than_one_half_stays_empty_though_another_query_claims_it():
    result = strip_result([1.0, 0.8], [THING, OTHER_THING], [logit(0.45), SURE, SURE], [logit(0.51), SURE, NEVER])
    assert result.map.tolist() == [[0, 1, 1]]


def test_pixels_won_with_less_than_one_half_count_as_visible():
    hidden_behind = [SURE, SURE, SURE, NEVER, NEVER]
    result = strip_result([0.8, 0.9], [THING, STUFF], [SURE, SURE, SURE, SURE, -0.5], hidden_behind)
    assert result.map.tolist() == [[2, 2, 2, 1, 0]]  # the first query wins 2 pixels, claims 4

    result = strip_result([0.8, 0.9], [THING, STUFF], [SURE, SURE, SURE, SURE], hidden_behind[:4])
    assert result.map.tolist() == [[1, 1, 1, 0]]
    assert [segment.label for segment in result.segments] == [STUFF]


@pytest.mark.parametrize(("overlap_threshold", "kept"), [(0.0, True), (0.5, True), (0.51, False), (0.8, False)])
def test_a_query_of_which_exactly_the_threshold_is_visible_stays(overlap_threshold, kept):
    result = strip_result([0.8, 0.9], [THING, STUFF], [SURE, SURE], [NEVER, SURE], overlap_threshold=overlap_threshold)
    assert result.map.tolist() == [[1, 2] if kept else [0, 1]]


def test_a_query_without_a_visible_pixel_gets_no_segment_at_any_threshold():
    result = strip_result([0.8, 0.9], [THING, STUFF], [SURE, NEVER], [SURE, SURE], overlap_threshold=0.0)
    assert result.map.tolist() == [[1, 1]]
    assert len(result.segments) == 1


def test_a_query_that_claims_nothing_gets_no_segment_but_hides_others():
    result = strip_result([1.0, 0.75], [THING, STUFF], [logit(0.49), logit(0.49)], [logit(0.6), SURE])
    assert result.map.tolist() == [[0, 1]]
    assert [segment.label for segment in result.segments] == [STUFF]


def test_ids_run_from_one_in_the_order_of_the_queries_without_gaps():
    result = strip_result(
        [0.75, 0.6, 0.8, 0.9, 0.85],
        [THING, THING, STUFF, OTHER_THING, THING],
        [SURE, NEVER, NEVER, NEVER],
        [NEVER, NEVER, NEVER, SURE],
        [NEVER, NEVER, SURE, NEVER],
        [NEVER, NEVER, SURE, NEVER],
        [NEVER, SURE, NEVER, NEVER],
    )
    assert result.map.tolist() == [[1, 3, 2, 0]]
    assert result.map.dtype == torch.int32
    assert [(s.id, s.label, s.is_thing) for s in result.segments] == [
        (1, THING, True),
        (2, OTHER_THING, True),
        (3, THING, True),
    ]
    assert [s.score for s in result.segments] == torch.tensor([0.75, 0.9, 0.85]).tolist()


def test_queries_of_one_stuff_label_share_the_first_ones_segment_and_things_do_not():
    lines = [SURE, NEVER, NEVER], [NEVER, SURE, NEVER], [NEVER, NEVER, SURE]
    stuff = strip_result([0.75, 0.8, 0.9], [STUFF, OTHER_STUFF, STUFF], *lines)
    assert stuff.map.tolist() == [[1, 2, 1]]
    assert [(s.id, s.label, s.is_thing, s.score) for s in stuff.segments] == [
        (1, STUFF, False, 0.75),
        (2, OTHER_STUFF, False, torch.tensor(0.8).item()),
    ]
    things = strip_result([0.75, 0.8, 0.9], [THING, OTHER_THING, THING], *lines)
    assert things.map.tolist() == [[1, 2, 3]]


def test_stuff_queries_are_dropped_one_by_one_before_they_are_merged():
    mostly_hidden = [SURE, SURE, SURE, SURE, NEVER, NEVER]
    result = strip_result(
        [0.75, 0.9, 0.8],
        [STUFF, THING, STUFF],
        mostly_hidden,
        [SURE, SURE, SURE, NEVER, NEVER, NEVER],
        [NEVER, NEVER, NEVER, NEVER, SURE, SURE],
    )
    assert result.map.tolist() == [[1, 1, 1, 0, 2, 2]]
    assert [(s.label, s.score) for s in result.segments] == [
        (THING, torch.tensor(0.9).item()),
        (STUFF, torch.tensor(0.8).item()),
    ]


def test_duplicates_go_within_a_label_before_pixels_are_given_out():
    three_copies = [SURE, SURE, NEVER], [SURE, SURE, NEVER], [SURE, SURE, NEVER]
    result = strip_result([0.8, 0.9, 0.85], [THING, THING, THING], *three_copies)
    assert [segment.score for segment in result.segments] == torch.tensor([0.9]).tolist()
    lonely = strip_result([0.9, 0.8], [THING, THING], [2, 2, -1], [3, 3, -1])
    assert lonely.map.tolist() == [[1, 1, 0]]
    assert lonely.segments[0].score == torch.tensor(0.9).item()


def test_duplicates_of_different_labels_compete_by_pixel():
    result = strip_result([0.8, 0.9], [THING, OTHER_THING], [SURE, SURE], [SURE, SURE])
    assert [segment.label for segment in result.segments] == [OTHER_THING]


def test_claims_that_overlap_by_exactly_the_nms_threshold_are_no_duplicates():
    lines = [1, 1, 1, NEVER], [NEVER, 1, 1, 1]
    assert len(strip_result([0.9, 0.8], [THING, THING], *lines, overlap_threshold=0.0).segments) == 2
    assert len(strip_result([0.9, 0.8], [THING, THING], *lines, nms_threshold=0.49).segments) == 1


def test_a_segment_of_one_pixel():
    result = strip_result([0.9], [THING], [NEVER, SURE, NEVER])
    assert result.map.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("scores", [[], [0.5, 0.7]])
def test_nothing_found(scores):
    queries = Queries(torch.ones(len(scores), 2, 2), torch.tensor(scores), torch.zeros(len(scores), dtype=torch.long))
    result = panoptic(queries, (3, 4), IS_THING, InferenceOptions())
    assert torch.equal(result.map, torch.zeros(3, 4, dtype=torch.int32))
    assert result.segments == []
