"""Matching: the cost matrix against a plain loop, the assignment against every permutation, awkward sizes."""

from itertools import permutations

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from openworldsam.modeling import matcher
from openworldsam.modeling.criterion import Criterion, FocalLoss
from openworldsam.modeling.matcher import match

ALPHA, GAMMA = 0.25, 2.0


def random_logits(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_masks(num_masks, height, width, seed=0):
    return torch.rand(num_masks, height, width, generator=torch.Generator().manual_seed(seed)) < 0.4


def costs_of(logits, targets, mask_weight=20.0, dice_weight=0.0):
    return Criterion(mask_weight=mask_weight, dice_weight=dice_weight).costs(logits, targets)


def nearest(mask, height, width):
    rows = [int(y * mask.shape[0] / height) for y in range(height)]
    columns = [int(x * mask.shape[1] / width) for x in range(width)]
    return mask[rows][:, columns].float()


def loop_costs(logits, masks, mask_weight, dice_weight):
    """One query and one mask at a time."""
    cost = torch.zeros(len(logits), len(masks))
    for k, query in enumerate(logits):
        for n, mask in enumerate(masks):
            target = nearest(mask, *query.shape)
            focal = sigmoid_focal_loss(query, target, alpha=ALPHA, gamma=GAMMA, reduction="mean")
            probability = query.sigmoid()
            dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
            cost[k, n] = mask_weight * focal + dice_weight * dice
    return cost


def cheapest(cost):
    """The total of the best assignment, found by trying all of them."""
    num_queries, num_targets = cost.shape
    if num_queries < num_targets:
        return cheapest(cost.T)
    columns = range(num_targets)
    return min(
        float(sum(cost[q, n] for q, n in zip(p, columns, strict=True)))
        for p in permutations(range(num_queries), num_targets)
    )


def pairs(matches):
    return list(zip(*(part.tolist() for part in matches), strict=True))


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_focal_costs_equal_fvcore(target):
    logits = torch.cat([torch.linspace(-100, 100, 401), torch.tensor([1e4, -1e4])])
    cost = FocalLoss(1.0).cost(logits[:, None], torch.tensor([[target]]))[:, 0]
    expected = sigmoid_focal_loss(logits, torch.full_like(logits, target), alpha=ALPHA, gamma=GAMMA, reduction="none")
    assert torch.isfinite(cost).all()
    assert torch.allclose(cost, expected, rtol=1e-6, atol=1e-6)


def test_focal_costs_by_hand():
    cost = FocalLoss(2.0).cost(torch.zeros(1, 1), torch.tensor([[1.0], [0.0]]))
    assert cost[0].tolist() == pytest.approx([2 * 0.25 * 0.25 * 0.6931472, 2 * 0.75 * 0.25 * 0.6931472])


@pytest.mark.parametrize(("mask_weight", "dice_weight"), [(20.0, 0.0), (5.0, 3.0), (0.0, 2.0)])
def test_costs_equal_a_plain_loop(mask_weight, dice_weight):
    logits = random_logits(3, 4, 6, 5)
    targets = [random_masks(3, 12, 10), random_masks(1, 9, 7, seed=1), random_masks(6, 2, 3, seed=2)]
    costs = costs_of(logits, targets, mask_weight, dice_weight)
    assert [tuple(cost.shape) for cost in costs] == [(4, 3), (4, 1), (4, 6)]
    for cost, query_logits, masks in zip(costs, logits, targets, strict=True):
        assert torch.allclose(cost, loop_costs(query_logits, masks, mask_weight, dice_weight), rtol=1e-5, atol=1e-6)


def test_targets_are_resized_to_their_nearest_pixels():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = mask[2, 2] = mask[1, 1] = mask[3, 1] = True  # only even rows and columns are looked at
    logits = torch.tensor([[[[5.0, -5.0], [-5.0, 5.0]], [[5.0, -5.0], [-5.0, -5.0]]]])
    (cost,) = costs_of(logits, [mask[None]])
    small = torch.eye(2, dtype=torch.bool)
    assert torch.equal(cost, costs_of(logits, [small[None]])[0])
    assert cost[0, 0] < 0.01 < cost[1, 0]


def test_costs_of_half_precision_logits_are_float32():
    logits = random_logits(1, 3, 4, 4).half()
    masks = random_masks(2, 4, 4)
    (cost,) = costs_of(logits, [masks], dice_weight=1.0)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, costs_of(logits.float(), [masks], dice_weight=1.0)[0])


def test_costs_have_no_gradient():
    (cost,) = costs_of(random_logits(1, 2, 3, 3).requires_grad_(), [random_masks(2, 3, 3)])
    assert not cost.requires_grad


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (6, 1), (1, 6), (2, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_the_assignment_is_the_cheapest_of_all(shape, seed):
    cost = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    matches = match([cost])
    assert float(cost[matches.query, matches.target].sum()) == pytest.approx(cheapest(cost), abs=1e-6)
    assert len(matches.query) == min(shape)
    assert len(set(matches.query.tolist())) == len(set(matches.target.tolist())) == min(shape)


def test_a_greedy_choice_would_be_dearer():
    assert pairs(match([torch.tensor([[1.0, 2.0], [1.5, 9.0]])])) == [(0, 0, 1), (0, 1, 0)]


def test_each_prompt_is_matched_alone_in_order():
    first = torch.tensor([[9.0], [9.0], [1.0]])
    second = torch.zeros(3, 0)
    third = torch.tensor([[9.0, 1.0], [1.0, 9.0], [9.0, 9.0]])
    fourth = torch.tensor([[9.0, 9.0, 9.0, 1.0], [9.0, 1.0, 9.0, 9.0], [1.0, 9.0, 9.0, 9.0]])
    matches = match([first, second, third, fourth])
    assert pairs(matches) == [(0, 2, 0), (2, 0, 1), (2, 1, 0), (3, 0, 3), (3, 1, 1), (3, 2, 0)]
    assert all(part.dtype == torch.int64 and part.device.type == "cpu" for part in matches)


def test_the_query_that_equals_a_mask_gets_it():
    masks = random_masks(3, 8, 8)
    order = [2, 4, 0]
    logits = random_logits(1, 5, 8, 8)
    logits[0, order] = 8 * (2 * masks.float() - 1)
    matches = match(costs_of(logits, [masks]))
    assert dict(zip(matches.target.tolist(), matches.query.tolist(), strict=True)) == dict(enumerate(order))


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_prompts_without_ground_truth_match_nothing(dice_weight):
    targets = [random_masks(0, 8, 8), random_masks(5, 6, 9), random_masks(0, 4, 4), random_masks(1, 6, 9)]
    costs = costs_of(random_logits(4, 3, 4, 4), targets, dice_weight=dice_weight)
    assert [tuple(cost.shape) for cost in costs] == [(3, 0), (3, 5), (3, 0), (3, 1)]
    assert match(costs).prompt.tolist() == [1, 1, 1, 3]


def test_a_batch_without_any_ground_truth_matches_nothing():
    matches = match(costs_of(random_logits(2, 3, 4, 4), [random_masks(0, 8, 8)] * 2))
    assert [tuple(part.shape) for part in matches] == [(0,)] * 3


def test_a_batch_without_prompts_matches_nothing():
    assert pairs(match([])) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_queries_that_are_no_numbers_are_matched_last(bad, dice_weight):
    logits, masks = random_logits(1, 4, 5, 5), random_masks(3, 5, 5)
    logits[0, 1] = bad
    (cost,) = costs_of(logits, [masks], dice_weight=dice_weight)
    assert torch.isfinite(cost).all()
    assert match([cost]).query.tolist() == [0, 2, 3]


def test_only_numberless_queries_still_match():
    (cost,) = costs_of(torch.full((1, 2, 3, 3), float("nan")), [random_masks(3, 3, 3)])
    assert cost.tolist() == [[1e6] * 3] * 2
    assert len(match([cost]).query) == 2


def test_extreme_logits_have_finite_costs():
    logits = torch.stack([torch.full((4, 4), 100.0), torch.full((4, 4), -100.0)])[None]
    masks = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]).bool()
    (cost,) = costs_of(logits, [masks], mask_weight=1.0)
    assert cost.tolist() == [[0, pytest.approx(75)], [pytest.approx(25), 0]]


def test_ground_truth_of_any_size_is_seen_as_interpolate_sees_it():
    masks = random_masks(4, 37, 53)
    logits = random_logits(1, 2, 16, 16)
    small = F.interpolate(masks[None].float(), (16, 16), mode="nearest")[0].bool()
    assert torch.equal(costs_of(logits, [masks])[0], costs_of(logits, [small])[0])


@pytest.mark.parametrize("prompts", [1, 2, 9])
def test_prompts_computed_together_cost_what_they_cost_alone(monkeypatch, prompts):
    monkeypatch.setattr(matcher, "CHUNK_BYTES", prompts * 4 * 3 * 8 * 8)
    logits = random_logits(6, 3, 8, 8)
    targets = [
        random_masks(n, *size, seed=n) for n, size in zip((2, 0, 5, 1, 1, 2), 3 * ((9, 12), (20, 7)), strict=True)
    ]
    for cost, query_logits, masks in zip(costs_of(logits, targets, 20.0, 2.0), logits, targets, strict=True):
        assert torch.allclose(cost, loop_costs(query_logits, masks, 20.0, 2.0), rtol=1e-6, atol=1e-6)
