"""The loss: focal against fvcore, dice by hand, divisors, weights, gradients, images of different sizes."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from openworldsam.config import add_openworldsam_config
from openworldsam.modeling import criterion as criterion_module
from openworldsam.modeling.criterion import Criterion, DiceLoss, FocalLoss
from openworldsam.modeling.matcher import Matches


def random_logits(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_masks(num_masks, height, width, seed=0):
    return torch.rand(num_masks, height, width, generator=torch.Generator().manual_seed(seed)) < 0.4


def matches_of(*triples):
    return Matches(*torch.tensor(triples, dtype=torch.long).reshape(-1, 3).T)


def upsampled(logits, mask):
    return F.interpolate(logits[None, None], mask.shape, mode="bilinear", align_corners=False)[0, 0]


def one_focal(logits, mask):
    return sigmoid_focal_loss(upsampled(logits, mask), mask.float(), alpha=0.25, gamma=2.0, reduction="mean")


def one_dice(logits, mask):
    probability, target = upsampled(logits, mask).sigmoid(), mask.float()
    return 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)


@pytest.mark.parametrize("extreme", [3.0, 100.0, 1e4])
def test_focal_loss_and_its_gradient_equal_fvcore(extreme):
    targets = random_masks(4, 6, 5)
    values = random_logits(4, 6, 5)
    values[:, :2] = extreme * values[:, :2].sign()
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()

    loss = FocalLoss(20.0).loss(ours, targets)
    expected = sigmoid_focal_loss(theirs, targets.float(), alpha=0.25, gamma=2.0, reduction="none")
    assert torch.allclose(loss, expected.flatten(1).mean(1), rtol=1e-6, atol=1e-6)
    loss.sum().backward()
    expected.flatten(1).mean(1).sum().backward()
    assert torch.isfinite(ours.grad).all()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("logit", [100.0, -100.0])
@pytest.mark.parametrize("target", [0, 1])
def test_focal_loss_of_sure_pixels(logit, target):
    logits = torch.full((1, 1, 1), logit, requires_grad=True)
    loss = FocalLoss(20.0).loss(logits, torch.full((1, 1, 1), target))
    loss.sum().backward()
    wrong = (logit > 0) != bool(target)
    weight = 0.25 if target else 0.75
    assert loss.item() == pytest.approx(100 * weight if wrong else 0, abs=1e-6)
    assert logits.grad.item() == pytest.approx(math.copysign(weight, logit) if wrong else 0, abs=1e-6)


def test_focal_loss_averages_pixels_of_each_mask_alone():
    logits = torch.zeros(2, 2, 2)
    targets = torch.tensor([[[1, 1], [1, 0]], [[0, 0], [0, 0]]])
    at_zero = 0.25 * math.log(2)
    expected = [(3 * 0.25 + 0.75) / 4 * at_zero, 0.75 * at_zero]
    assert FocalLoss(20.0).loss(logits, targets).tolist() == pytest.approx(expected)


def test_dice_loss_by_hand():
    logits = torch.tensor([[[100.0, 100.0, -100.0, 0.0]], [[-100.0] * 4], [[100.0] * 4]])
    targets = torch.tensor([[[1, 0, 1, 0]], [[0] * 4], [[1] * 4]])
    assert DiceLoss(3.0).loss(logits, targets).tolist() == pytest.approx(
        [1 - (2 * 1 + 1) / (2.5 + 2 + 1), 0, 0], abs=1e-6
    )


@pytest.mark.parametrize("divisor", ["targets", "matched"])
@pytest.mark.parametrize("dice_weight", [0.0, 3.0])
def test_the_loss_is_the_mean_over_the_prompts_with_ground_truth(divisor, dice_weight):
    targets = [random_masks(2, 8, 6), random_masks(0, 5, 5), random_masks(5, 3, 9, seed=1), random_masks(1, 16, 4)]
    matches = matches_of((0, 0, 1), (0, 2, 0), (2, 0, 4), (2, 1, 0), (2, 2, 2), (3, 1, 0))
    logits = random_logits(6, 4, 4)
    focal = [one_focal(x, targets[p][t]) for x, p, t in zip(logits, matches.prompt, matches.target, strict=True)]
    dice = [one_dice(x, targets[p][t]) for x, p, t in zip(logits, matches.prompt, matches.target, strict=True)]
    third = {"targets": 5, "matched": 3}[divisor]

    def mean(terms):
        return (sum(terms[:2]) / 2 + sum(terms[2:5]) / third + terms[5]) / 3

    losses = Criterion(mask_weight=20.0, dice_weight=dice_weight, divisor=divisor)(logits, targets, matches)
    assert losses["loss_mask"].item() == pytest.approx(20 * float(mean(focal)), rel=1e-5)
    assert losses.keys() == ({"loss_mask", "loss_dice"} if dice_weight else {"loss_mask"})
    if dice_weight:
        assert losses["loss_dice"].item() == pytest.approx(3 * float(mean(dice)), rel=1e-5)


def test_a_loss_by_hand():
    matches = matches_of((0, 0, 0))
    losses = Criterion(dice_weight=1.0)(torch.zeros(1, 2, 2), [torch.ones(1, 4, 4).bool()], matches)
    assert losses["loss_mask"].item() == pytest.approx(20 * 0.25 * 0.25 * math.log(2))
    assert losses["loss_dice"].item() == pytest.approx(1 - 17 / 25)


def test_divisors_differ_only_with_more_masks_than_queries():
    logits, matches = random_logits(2, 4, 4), matches_of((0, 0, 3), (0, 1, 1))
    many, few = [random_masks(5, 4, 4)], [random_masks(5, 4, 4)[[3, 1]]]
    by_targets, by_matched = Criterion(divisor="targets"), Criterion(divisor="matched")

    def loss(criterion, targets, matches=matches):
        return criterion(logits, targets, matches)["loss_mask"].item()

    assert loss(by_matched, many) == pytest.approx(2.5 * loss(by_targets, many))
    same = matches_of((0, 0, 0), (0, 1, 1))
    assert loss(by_matched, few, same) == loss(by_targets, few, same) == pytest.approx(loss(by_matched, many))


def test_losses_are_proportional_to_their_weights():
    logits, targets, matches = random_logits(1, 4, 4), [random_masks(1, 6, 6)], matches_of((0, 0, 0))
    one = Criterion(mask_weight=1.0, dice_weight=1.0)(logits, targets, matches)
    more = Criterion(mask_weight=7.0, dice_weight=0.5)(logits, targets, matches)
    assert more["loss_mask"].item() == pytest.approx(7 * one["loss_mask"].item())
    assert more["loss_dice"].item() == pytest.approx(0.5 * one["loss_dice"].item())


def test_without_a_mask_weight_the_focal_loss_has_no_effect():
    logits = random_logits(1, 4, 4).requires_grad_()
    losses = Criterion(mask_weight=0.0, dice_weight=1.0)(logits, [random_masks(1, 4, 4)], matches_of((0, 0, 0)))
    assert losses.keys() == {"loss_dice"} and losses["loss_dice"].item() > 0


def test_a_loss_without_a_weight_is_not_computed():
    assert Criterion(dice_weight=0.0).losses == [FocalLoss(20.0)]
    assert Criterion(mask_weight=0.0, dice_weight=1.0).losses == [DiceLoss(1.0)]


def test_weights_choose_the_assignment_too():
    target = torch.zeros(1, 1, 8, dtype=torch.bool)
    target[..., 0] = True
    unsure, sure_but_wrong = torch.full((1, 8), -1.0), torch.full((1, 8), -9.0)
    unsure[0, 0], sure_but_wrong[0, 0], sure_but_wrong[0, 7] = 1.0, 9.0, 9.0
    logits = torch.stack([unsure, sure_but_wrong])[None]
    by_focal = Criterion(mask_weight=20.0, dice_weight=0.0).match(logits, [target])
    by_dice = Criterion(mask_weight=0.0, dice_weight=1.0).match(logits, [target])
    assert (by_focal.query.tolist(), by_dice.query.tolist()) == ([0], [1])


@pytest.mark.parametrize("dice_weight", [0.0, 2.0])
def test_only_matched_queries_get_a_gradient(dice_weight):
    criterion = Criterion(dice_weight=dice_weight)
    logits = random_logits(3, 4, 5, 5).requires_grad_()
    targets = [random_masks(2, 10, 7), random_masks(0, 10, 7), random_masks(6, 5, 5, seed=3)]
    matches = criterion.match(logits, targets)
    sum(criterion(logits[matches.prompt, matches.query], targets, matches).values()).backward()
    has_gradient = logits.grad.flatten(2).any(dim=2)
    expected = torch.zeros(3, 4, dtype=torch.bool)
    expected[matches.prompt, matches.query] = True
    assert torch.equal(has_gradient, expected)
    assert expected.sum(1).tolist() == [2, 0, 4]


@pytest.mark.parametrize("dice_weight", [0.0, 2.0])
def test_without_pairs_losses_are_zero_with_a_zero_gradient(dice_weight):
    logits = random_logits(1, 4, 4).requires_grad_()
    losses = Criterion(dice_weight=dice_weight)(logits, [random_masks(0, 6, 6)] * 2, matches_of())
    total = sum(losses.values())
    total.backward()
    assert total.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 4, 4))


def test_extreme_logits_keep_loss_and_gradient_finite():
    logits = (100 * random_logits(2, 4, 4).sign()).requires_grad_()
    losses = Criterion(dice_weight=1.0)(logits, [random_masks(2, 9, 9)], matches_of((0, 0, 0), (0, 1, 1)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()


def test_bfloat16_logits_give_a_float32_loss():
    logits, targets, matches = random_logits(1, 4, 4).bfloat16(), [random_masks(1, 6, 6)], matches_of((0, 0, 0))
    loss = Criterion()(logits, targets, matches)["loss_mask"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(Criterion()(logits.float(), targets, matches)["loss_mask"].item())


def test_float16_logits_give_a_finite_loss():
    logits = torch.full((1, 128, 128), -10.0, dtype=torch.float16)
    losses = Criterion()(logits, [random_masks(1, 4, 4)], matches_of((0, 0, 0)))
    assert math.isfinite(losses["loss_mask"].item())


def test_an_unknown_divisor_is_refused():
    with pytest.raises(ValueError, match=r"DIVISOR.*'mean'"):
        Criterion(divisor="mean")


def test_the_config_sets_everything():
    cfg = get_cfg()
    add_openworldsam_config(cfg)
    default = Criterion(cfg)
    assert (default.losses, default.divisor) == ([FocalLoss(20.0, 0.25, 2.0)], "targets")
    changes = {"MASK_WEIGHT": 1.0, "DICE_WEIGHT": 2.0, "FOCAL_ALPHA": 0.5, "FOCAL_GAMMA": 3.0, "DIVISOR": "matched"}
    for key, value in changes.items():
        cfg.MODEL.CRITERION[key] = value
    changed = Criterion(cfg)
    assert (changed.losses, changed.divisor) == ([FocalLoss(1.0, 0.5, 3.0), DiceLoss(2.0)], "matched")


@pytest.mark.parametrize("chunk", [1, 2**20])
def test_chunks_change_neither_loss_nor_gradient(monkeypatch, chunk):
    monkeypatch.setattr(criterion_module, "CHUNK_BYTES", chunk)
    targets = [random_masks(2, 8, 6), random_masks(0, 5, 5), random_masks(4, 8, 6, seed=1), random_masks(1, 16, 4)]
    matches = matches_of((0, 0, 1), (0, 2, 0), (2, 0, 3), (2, 1, 0), (2, 2, 2), (3, 1, 0))
    ours, plain = random_logits(6, 4, 4).requires_grad_(), random_logits(6, 4, 4).requires_grad_()
    losses = Criterion(dice_weight=3.0)(ours, targets, matches)
    expected = sum(
        (20 * one_focal(x, targets[p][t]) + 3 * one_dice(x, targets[p][t])) / (len(targets[p]) * 3)
        for x, p, t in zip(plain, matches.prompt, matches.target, strict=True)
    )
    total = losses["loss_mask"] + losses["loss_dice"]
    total.backward()
    expected.backward()
    assert torch.allclose(total, expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-6, atol=1e-6)


def test_full_size_masks_exist_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(criterion_module, "CHUNK_BYTES", 2 * 4 * 8 * 6)
    sizes = []
    focal_loss = FocalLoss.loss
    counted = lambda self, full, target: sizes.append(len(full)) or focal_loss(self, full, target)  # noqa: E731
    monkeypatch.setattr(FocalLoss, "loss", counted)
    logits, targets = random_logits(5, 4, 4).requires_grad_(), [random_masks(5, 8, 6)]
    loss = Criterion()(logits, targets, matches_of(*((0, q, q) for q in range(5))))["loss_mask"]
    assert sizes == [2, 2, 1]
    loss.backward()
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]  # the backward pass makes them again
    monkeypatch.setattr(criterion_module, "CHUNK_BYTES", 5 * 4 * 8 * 6)
    sizes.clear()
    Criterion()(logits, targets, matches_of(*((0, q, q) for q in range(5))))["loss_mask"].backward()
    assert sizes == [5]  # a single chunk is kept
