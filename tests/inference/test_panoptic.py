"""Panoptic: every rule on strips worked out by hand, and all of them against a plain loop on random masks."""

import math

import pytest
import torch
from torch.nn import functional as F

from openworldsam.inference import InferenceOptions, MaskRows, panoptic_inference
from openworldsam.inference import rows as rows_module

THING, OTHER_THING, STUFF, OTHER_STUFF = 0, 1, 2, 3
IS_THING = {THING: True, OTHER_THING: True, STUFF: False, OTHER_STUFF: False}
SURE, NEVER = 20.0, -200.0  # probabilities 1 and 0


def logit(probability):
    return math.log(probability / (1 - probability))


def strip_result(scores, labels, *strips, **options):
    """Panoptic result of rows one pixel high, given as logits."""
    rows = MaskRows(torch.tensor(strips).float()[:, None], torch.tensor(scores), torch.tensor(labels))
    return panoptic_inference(rows, (1, len(strips[0])), IS_THING, InferenceOptions(**options))


def loop_panoptic(rows, size, options):
    """The rules one pixel and one pair at a time: the map as lists, and (id, label, is_thing, score) of segments."""
    probability = F.interpolate(rows.logits[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    weighted = (probability * rows.scores[:, None, None]).flatten(1).tolist()
    probability = probability.flatten(1).tolist()
    scores, labels = rows.scores.tolist(), rows.labels.tolist()
    claimed = [{pixel for pixel, p in enumerate(row) if p >= 0.5} for row in probability]

    confident = [row for row, score in enumerate(scores) if score > options.score_threshold]
    survivors = []
    for row in sorted(confident, key=lambda row: (-scores[row], row)):
        overlaps = [
            len(claimed[row] & claimed[other]) / max(1, len(claimed[row] | claimed[other]))
            for other in survivors
            if labels[other] == labels[row]
        ]
        if all(overlap <= options.nms_threshold for overlap in overlaps):
            survivors.append(row)
    survivors.sort()

    num_pixels = size[0] * size[1]
    won = {row: set() for row in survivors}
    for pixel in range(num_pixels if survivors else 0):
        won[max(survivors, key=lambda row: (weighted[row][pixel], -row))].add(pixel)

    panoptic_map, segments, stuff_ids = [0] * num_pixels, [], {}
    for row in survivors:
        visible = won[row] & claimed[row]
        if not visible or len(won[row]) / len(claimed[row]) < options.overlap_threshold:
            continue
        if labels[row] not in stuff_ids:
            segments.append((len(segments) + 1, labels[row], IS_THING[labels[row]], scores[row]))
        segment_id = stuff_ids.get(labels[row], len(segments))
        if not IS_THING[labels[row]]:
            stuff_ids[labels[row]] = segment_id
        for pixel in visible:
            panoptic_map[pixel] = segment_id
    return panoptic_map, segments


def smooth_rows(seed, num_rows=24):
    """Blobs, a third of them near copies of others, with scores that tie now and then."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_rows, 4, 4, generator=generator) - 4
    copies = torch.randperm(num_rows, generator=generator)[: num_rows // 3]
    logits[copies] = logits[copies.flip(0)] + 0.5 * torch.randn(len(copies), 4, 4, generator=generator)
    scores = torch.randint(8, 21, (num_rows,), generator=generator) / 20
    return MaskRows(logits, scores, torch.randint(0, 4, (num_rows,), generator=generator))


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
    rows, size = smooth_rows(seed), (13, 17)
    expected_map, expected_segments = loop_panoptic(rows, size, options)
    result = panoptic_inference(rows, size, IS_THING, options)
    assert result.map.flatten().tolist() == expected_map
    assert [tuple(segment) for segment in result.segments] == expected_segments
    assert len(set(expected_map)) > 2


@pytest.mark.parametrize("masks_that_fit", [1, 5])
def test_chunks_change_nothing(monkeypatch, masks_that_fit):
    rows, size, options = smooth_rows(0), (13, 17), InferenceOptions(score_threshold=0.4)
    rows.logits[16:] = rows.logits[:8]  # equal rows in different chunks
    rows.scores[16:] = rows.scores[:8]
    whole = panoptic_inference(rows, size, IS_THING, options)
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", masks_that_fit * 4 * 13 * 17)
    chunked = panoptic_inference(rows, size, IS_THING, options)
    assert torch.equal(chunked.map, whole.map)
    assert chunked.segments == whole.segments


def test_a_score_of_exactly_the_threshold_does_not_count():
    result = strip_result([0.7, 0.7001], [THING, OTHER_THING], [SURE, -1], [-1, SURE], score_threshold=0.7)
    assert result.map.tolist() == [[0, 1]]
    assert [segment.label for segment in result.segments] == [OTHER_THING]


def test_a_probability_of_exactly_one_half_claims_the_pixel():
    assert strip_result([0.9], [THING], [0.0, -1e-3, 1.0]).map.tolist() == [[1, 0, 1]]


def test_score_times_probability_decides_a_pixel():
    result = strip_result([1.0, 0.8], [THING, OTHER_THING], [logit(0.6), SURE], [logit(0.8), SURE])
    assert result.map.tolist() == [[2, 1]]


def test_of_equal_products_the_first_row_wins():
    result = strip_result([0.9, 0.9], [OTHER_THING, THING], [1, 1], [1, 1], overlap_threshold=0.0)
    assert result.map.tolist() == [[1, 1]]
    assert [segment.label for segment in result.segments] == [OTHER_THING]


def test_a_pixel_won_with_less_than_one_half_stays_empty_though_another_row_claims_it():
    result = strip_result([1.0, 0.8], [THING, OTHER_THING], [logit(0.45), SURE, SURE], [logit(0.51), SURE, NEVER])
    assert result.map.tolist() == [[0, 1, 1]]


def test_pixels_won_with_less_than_one_half_count_as_visible():
    hidden_behind = [SURE, SURE, SURE, NEVER, NEVER]
    result = strip_result([0.8, 0.9], [THING, STUFF], [SURE, SURE, SURE, SURE, -0.5], hidden_behind)
    assert result.map.tolist() == [[2, 2, 2, 1, 0]]  # the first row wins 2 pixels, claims 4

    result = strip_result([0.8, 0.9], [THING, STUFF], [SURE, SURE, SURE, SURE], hidden_behind[:4])
    assert result.map.tolist() == [[1, 1, 1, 0]]
    assert [segment.label for segment in result.segments] == [STUFF]


@pytest.mark.parametrize(("overlap_threshold", "kept"), [(0.0, True), (0.5, True), (0.51, False), (0.8, False)])
def test_a_row_of_which_exactly_the_threshold_is_visible_stays(overlap_threshold, kept):
    result = strip_result([0.8, 0.9], [THING, STUFF], [SURE, SURE], [NEVER, SURE], overlap_threshold=overlap_threshold)
    assert result.map.tolist() == [[1, 2] if kept else [0, 1]]


def test_a_row_without_a_visible_pixel_gets_no_segment_at_any_threshold():
    result = strip_result([0.8, 0.9], [THING, STUFF], [SURE, NEVER], [SURE, SURE], overlap_threshold=0.0)
    assert result.map.tolist() == [[1, 1]]
    assert len(result.segments) == 1


def test_a_row_that_claims_nothing_gets_no_segment_but_hides_others():
    result = strip_result([1.0, 0.75], [THING, STUFF], [logit(0.49), logit(0.49)], [logit(0.6), SURE])
    assert result.map.tolist() == [[0, 1]]
    assert [segment.label for segment in result.segments] == [STUFF]


def test_ids_run_from_one_in_the_order_of_the_rows_without_gaps():
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


def test_rows_of_one_stuff_label_share_the_first_ones_segment_and_things_do_not():
    strips = [SURE, NEVER, NEVER], [NEVER, SURE, NEVER], [NEVER, NEVER, SURE]
    stuff = strip_result([0.75, 0.8, 0.9], [STUFF, OTHER_STUFF, STUFF], *strips)
    assert stuff.map.tolist() == [[1, 2, 1]]
    assert [(s.id, s.label, s.is_thing, s.score) for s in stuff.segments] == [
        (1, STUFF, False, 0.75),
        (2, OTHER_STUFF, False, torch.tensor(0.8).item()),
    ]
    things = strip_result([0.75, 0.8, 0.9], [THING, OTHER_THING, THING], *strips)
    assert things.map.tolist() == [[1, 2, 3]]


def test_stuff_rows_are_dropped_one_by_one_before_they_are_merged():
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
    strips = [1, 1, 1, NEVER], [NEVER, 1, 1, 1]
    assert len(strip_result([0.9, 0.8], [THING, THING], *strips, overlap_threshold=0.0).segments) == 2
    assert len(strip_result([0.9, 0.8], [THING, THING], *strips, nms_threshold=0.49).segments) == 1


def test_a_segment_of_one_pixel():
    result = strip_result([0.9], [THING], [NEVER, SURE, NEVER])
    assert result.map.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("scores", [[], [0.5, 0.7]])
def test_nothing_found(scores):
    rows = MaskRows(torch.ones(len(scores), 2, 2), torch.tensor(scores), torch.zeros(len(scores), dtype=torch.long))
    result = panoptic_inference(rows, (3, 4), IS_THING, InferenceOptions())
    assert torch.equal(result.map, torch.zeros(3, 4, dtype=torch.int32))
    assert result.segments == []
