"""Removal of duplicates: mask IoU and box IoU against plain loops, order, ties and the strict threshold."""

import pytest
import torch
from one_task import instances

from openworldsam.inference import InferenceOptions, nms
from openworldsam.inference.nms import greedy_nms, mask_boxes, mask_iou
from openworldsam.inference.queries import Queries, positive


def mask_nms(masks, scores, labels, threshold):
    """The queries kept, in order, when masks are compared within their class."""
    return nms.mask_nms(Queries(masks.float() * 2 - 1, scores, labels), masks.shape[1:], threshold, positive)[0]


def box_nms(masks, scores, threshold):
    """The queries kept, in order, when boxes are compared across classes."""
    queries = Queries(masks.float() * 2 - 1, scores, torch.arange(len(masks)))
    options = InferenceOptions(score_threshold=0.0, nms_threshold=threshold, instance_nms="box")
    return instances(queries, masks.shape[1:], options).labels


def strips(width, *spans):
    """Masks one pixel high, each covering a half-open span of columns."""
    masks = torch.zeros(len(spans), 1, width, dtype=torch.bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


def random_masks(num_masks, seed, height=9, width=7):
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand(num_masks, 1, 1, generator=generator)
    return torch.rand(num_masks, height, width, generator=generator) < density


def loop_mask_iou(masks):
    pixels = [{p for p, on in enumerate(mask.flatten().tolist()) if on} for mask in masks]
    return torch.tensor(
        [[len(a & b) / len(a | b) if a | b else 0.0 for b in pixels] for a in pixels], dtype=torch.float64
    )


def loop_nms(iou, scores, threshold):
    """Queries best first (earlier queries first among equals), each kept unless a kept one overlaps it by more."""
    kept = []
    for query in sorted(range(len(scores)), key=lambda query: (-scores[query], query)):
        if all(iou[query][better] <= threshold for better in kept):
            kept.append(query)
    return kept


def box_iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return width * height / (sum(area) - width * height)


@pytest.mark.parametrize("seed", range(4))
def test_mask_iou_equals_a_loop_over_pairs(seed):
    masks = random_masks(12, seed)
    masks[3], masks[8] = masks[5], False
    assert torch.equal(mask_iou(masks), loop_mask_iou(masks))


def test_mask_iou_by_hand():
    iou = mask_iou(strips(6, (0, 4), (2, 6), (0, 0), (0, 2)))
    third = 2 / 6
    assert iou.tolist() == [[1, third, 0, 0.5], [third, 1, 0, 0], [0, 0, 0, 0], [0.5, 0, 0, 1]]


@pytest.mark.parametrize("pixels", [1, 4, 62, 63, 64])
def test_mask_iou_does_not_depend_on_the_chunk(monkeypatch, pixels):
    masks = random_masks(6, 0)
    whole = mask_iou(masks)
    monkeypatch.setattr(nms, "PIXELS_AT_ONCE", pixels)
    assert torch.equal(mask_iou(masks), whole)


def test_mask_iou_is_exact_beyond_the_integers_of_float32():
    side = 4097
    masks = torch.ones(2, side, side, dtype=torch.bool)
    masks[1, 2, 3] = False
    assert mask_iou(masks)[0, 1].item() == (side**2 - 1) / side**2


def test_mask_iou_of_no_masks():
    assert mask_iou(torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0, 0)


def test_a_removed_query_removes_nothing_itself():
    iou = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.9], [0.0, 0.9, 1.0]])
    assert greedy_nms(iou, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
    assert greedy_nms(iou, torch.tensor([0.7, 0.8, 0.9]), 0.5).tolist() == [2, 0]
    assert greedy_nms(iou, torch.tensor([0.8, 0.9, 0.7]), 0.5).tolist() == [1]


def test_an_overlap_of_exactly_the_threshold_stays():
    masks = strips(4, (0, 3), (1, 4))
    scores, labels = torch.tensor([0.8, 0.9]), torch.zeros(2, dtype=torch.long)
    assert mask_iou(masks)[0, 1] == 0.5
    assert mask_nms(masks, scores, labels, 0.5).tolist() == [1, 0]
    assert mask_nms(masks, scores, labels, 0.4999).tolist() == [1]
    assert box_nms(masks, scores, 0.5).tolist() == [1, 0]
    assert box_nms(masks, scores, 0.4999).tolist() == [1]


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, [0, 2]), (1.0, [0, 1, 2])])
def test_extreme_thresholds(threshold, kept):
    masks, scores = strips(6, (0, 4), (0, 4), (4, 6)), torch.tensor([0.9, 0.8, 0.7])
    assert mask_nms(masks, scores, torch.zeros(3, dtype=torch.long), threshold).tolist() == kept
    assert box_nms(masks, scores, threshold).tolist() == kept


def test_of_equal_scores_the_earlier_query_stays():
    masks, scores = strips(4, (0, 4)).expand(40, -1, -1), torch.full((40,), 0.75)
    assert greedy_nms(mask_iou(masks), scores, 0.5).tolist() == [0]
    assert mask_nms(masks, scores, torch.zeros(40, dtype=torch.long), 0.5).tolist() == [0]
    assert box_nms(masks, scores, 0.5).tolist() == [0]


def test_masks_of_different_classes_do_not_remove_each_other():
    masks = strips(6, (0, 4), (0, 4), (0, 4), (4, 6))
    scores, labels = torch.tensor([0.7, 0.9, 0.8, 0.6]), torch.tensor([5, 2, 5, 2])
    assert mask_nms(masks, scores, labels, 0.5).tolist() == [1, 2, 3]


def test_results_come_best_first_and_ties_in_the_order_of_the_queries():
    masks = strips(6, (0, 1), (1, 2), (2, 3), (3, 4), (4, 5))
    scores, labels = torch.tensor([0.7, 0.9, 0.7, 0.9, 0.8]), torch.tensor([9, 4, 1, 0, 9])
    assert mask_nms(masks, scores, labels, 0.5).tolist() == [1, 3, 4, 0, 2]
    assert box_nms(masks, scores, 0.5).tolist() == [1, 3, 4, 0, 2]


def test_empty_masks_neither_go_nor_remove():
    masks = strips(4, (0, 0), (0, 0), (0, 4))
    labels = torch.zeros(3, dtype=torch.long)
    assert mask_nms(masks, torch.tensor([0.9, 0.8, 0.7]), labels, 0.5).tolist() == [0, 1, 2]


def test_no_masks():
    masks, scores = torch.zeros(0, 3, 3, dtype=torch.bool), torch.zeros(0)
    assert mask_nms(masks, scores, torch.zeros(0, dtype=torch.long), 0.5).tolist() == []
    assert box_nms(masks, scores, 0.5).tolist() == []
    assert mask_boxes(masks).shape == (0, 4)


@pytest.mark.parametrize("seed", range(5))
def test_mask_nms_equals_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    masks = random_masks(30, seed, 4, 4)
    scores = torch.randint(1, 8, (30,), generator=generator) / 8
    labels = torch.randint(0, 3, (30,), generator=generator)
    same_label = (labels[:, None] == labels[None]).double()
    expected = loop_nms((loop_mask_iou(masks) * same_label).tolist(), scores.tolist(), 0.5)
    assert mask_nms(masks, scores, labels, 0.5).tolist() == expected
    assert len(expected) < 30


@pytest.mark.parametrize("seed", range(5))
def test_box_nms_equals_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 12, (30, 2, 2), generator=generator).sort(dim=1).values.tolist()
    boxes = [(x0, y0, x1 + 1, y1 + 1) for (x0, y0), (x1, y1) in corners]
    masks = torch.zeros(30, 12, 12, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0, x0] = mask[y1 - 1, x1 - 1] = True
    scores = torch.randint(1, 8, (30,), generator=generator) / 8
    expected = loop_nms([[box_iou(a, b) for b in boxes] for a in boxes], scores.tolist(), 0.5)
    assert mask_boxes(masks).tolist() == [list(box) for box in boxes]
    assert box_nms(masks, scores, 0.5).tolist() == expected
    assert len(expected) < 30


def test_boxes_are_tight_with_exclusive_right_and_bottom():
    masks = torch.zeros(4, 5, 6, dtype=torch.bool)
    masks[0, 2, 3] = True
    masks[1, 1, 4] = masks[1, 3, 0] = True
    masks[2] = True
    boxes = mask_boxes(masks)
    assert boxes.is_floating_point()
    assert boxes.tolist() == [[3, 2, 4, 3], [0, 1, 5, 4], [0, 0, 6, 5], [0, 0, 0, 0]]


def test_diagonals_of_one_box_are_duplicates_only_by_box():
    diagonal = torch.eye(4, dtype=torch.bool)
    masks, scores = torch.stack([diagonal, diagonal.flip(1)]), torch.tensor([0.8, 0.9])
    assert mask_nms(masks, scores, torch.zeros(2, dtype=torch.long), 0.5).tolist() == [1, 0]
    assert box_nms(masks, scores, 0.5).tolist() == [1]
