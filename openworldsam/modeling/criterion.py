"""Losses of matched masks at the resolution of the ground truth (paper Sec. 3 "Training").

Shapes: P prompts of the batch, K queries per prompt, N_p ground-truth masks of prompt p, n matched pairs,
h = w = 4S mask side, H, W size of an image's ground truth.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from openworldsam.config import arguments
from openworldsam.modeling.matcher import Matches, match, matching_costs
from openworldsam.utils.device import upload

DIVISORS = ("targets", "matched")
CHUNK_BYTES = 8 * 2**20
"""Most bytes of logits at the size of the ground truth that exist at a time (at least one mask does)."""


@dataclass(frozen=True)
class FocalLoss:
    """Sigmoid focal loss alpha_t (1 - p_t)^gamma CE, averaged over pixels."""

    name: ClassVar[str] = "loss_mask"
    weight: float
    alpha: float = 0.25
    gamma: float = 2.0

    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Weighted cost of every pair: logits [r, pixels], 0/1 targets [m, pixels] -> [r, m]."""
        # equals softplus, which takes ten times as long on a CPU
        negative = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
        positive, negative = self.alpha * self._focal(negative - logits), (1 - self.alpha) * self._focal(negative)
        return self.weight * (positive @ targets.T + negative @ (1 - targets).T) / targets.shape[1]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Unweighted loss of each pair: logits and 0/1 targets [n, H, W] -> [n]."""
        cross_entropy = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        weights = torch.where(targets.bool(), self.alpha, 1 - self.alpha)
        return (weights * self._focal(cross_entropy)).flatten(1).mean(1)

    def _focal(self, cross_entropy: Tensor) -> Tensor:
        return (1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy


@dataclass(frozen=True)
class DiceLoss:
    """1 - dice of probabilities, smoothed by 1."""

    name: ClassVar[str] = "loss_dice"
    weight: float

    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `FocalLoss`."""
        probability = logits.sigmoid()
        overlap = 2 * probability @ targets.T + 1
        return self.weight * (1 - overlap / (probability.sum(1)[:, None] + targets.sum(1) + 1))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `FocalLoss`."""
        probability, target = logits.sigmoid().flatten(1), targets.flatten(1).to(logits.dtype)
        overlap = 2 * (probability * target).sum(1) + 1
        return 1 - overlap / (probability.sum(1) + target.sum(1) + 1)


class Criterion(nn.Module):
    """Matches queries to ground truth and rates the masks of matched ones, and the match scores of all.

    The mask loss is the mean over all prompts of the batch that have ground truth. A prompt's loss is the sum over its
    pairs divided by `divisor`: the number of its masks ("targets") or of its pairs ("matched"). The arguments are the
    keys of MODEL.CRITERION, which `config.py` explains.

    Raises:
        ValueError: an unknown divisor, or no weight at all.
    """

    @configurable
    def __init__(
        self,
        *,
        mask_weight: float = 20.0,
        dice_weight: float = 0.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        divisor: str = "targets",
        score_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if divisor not in DIVISORS:
            raise ValueError(f"MODEL.CRITERION.DIVISOR is one of {DIVISORS}, got {divisor!r}")
        losses = (FocalLoss(mask_weight, focal_alpha, focal_gamma), DiceLoss(dice_weight))
        self.losses = [loss for loss in losses if loss.weight]
        if not self.losses and not score_weight:
            raise ValueError(
                "MODEL.CRITERION.MASK_WEIGHT, DICE_WEIGHT and SCORE_WEIGHT are 0: there is nothing to learn"
            )
        self.divisor = divisor
        self.score_weight = score_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return arguments(cfg.MODEL.CRITERION)

    def match(self, logits: Tensor, targets: list[Tensor]) -> Matches:
        """Assign queries to ground truth: logits [P, K, h, w], targets P times bool [N_p, H, W]."""
        return match(self.costs(logits, targets))

    def costs(self, logits: Tensor, targets: list[Tensor]) -> list[Tensor]:
        """Matching costs, P times [K, N_p]."""
        return matching_costs(logits, targets, [loss.cost for loss in self.losses])

    def forward(self, logits: Tensor, targets: list[Tensor], matches: Matches) -> dict[str, Tensor]:
        """Weighted losses of the matched pairs.

        Full-size masks exist a chunk at a time, in the backward pass too, which computes them again unless a single
        chunk holds them all.

        Args:
            logits: [pairs, h, w], the matched queries in the order of `matches`.
            targets: P times bool [N_p, H, W], all on one device.
            matches: of these targets.

        Returns:
            scalars by name: "loss_mask" and "loss_dice", each if it has a weight.
        """
        masks = [targets[p][t] for p, t in zip(matches.prompt.tolist(), matches.target.tolist(), strict=True)]
        matched = torch.bincount(matches.prompt, minlength=len(targets))
        counts = torch.tensor([len(t) for t in targets]) if self.divisor == "targets" else matched
        shares = 1 / (counts[matches.prompt] * num_present(targets))
        total = logits.new_zeros(len(self.losses), dtype=torch.float32)
        total = total + logits.float().sum() * 0  # keeps the graph where nothing is matched
        chunks = _chunks(masks)
        for pairs in chunks:
            chunk = (
                logits[upload(pairs, logits.device)].float(),
                [masks[pair] for pair in pairs],
                upload(shares[pairs], logits.device),
            )
            if len(chunks) == 1:
                total = total + self._losses(*chunk)
            else:
                total = total + checkpoint(self._losses, *chunk, use_reentrant=False, preserve_rng_state=False)
        return {loss.name: value for loss, value in zip(self.losses, total, strict=True)}

    def score_loss(self, scores: Tensor, logits: Tensor, targets: list[Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy of match scores against the quality of the masks.

        A query's target is its largest IoU with a mask of its prompt at the decoder's resolution, so 0 if the prompt
        is absent. The loss is summed over the prompts' means, and divided by the number of prompts with ground truth
        as the mask loss is: micro-batches and processes add up whatever absent prompts they have.

        Args:
            scores: logits of the match scores [P, K].
            logits: [P, K, h, w].
            targets: P times bool [N_p, H, W].

        Returns:
            the weighted "loss_score".
        """
        loss = F.binary_cross_entropy_with_logits(scores.float(), best_ious(logits, targets), reduction="none")
        return {"loss_score": self.score_weight * loss.mean(dim=1).sum() / num_present(targets)}

    def _losses(self, logits: Tensor, masks: list[Tensor], shares: Tensor) -> Tensor:
        """Weighted losses [losses] of n pairs: logits [n, h, w], n masks bool [H, W], their shares [n] in the batch."""
        target = torch.stack(masks)
        full = F.interpolate(logits[:, None], target.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        return torch.stack([loss.weight * (shares * loss.loss(full, target)).sum() for loss in self.losses])


def num_present(targets: list[Tensor]) -> int:
    """Number of prompts with ground truth, at least 1, from P times [N_p, H, W]."""
    return max(1, sum(len(target) > 0 for target in targets))


def best_ious(logits: Tensor, targets: list[Tensor]) -> Tensor:
    """Largest IoU of each query with a mask of its prompt, 0 without one: logits [P, K, h, w] -> [P, K]."""
    pairs = matching_costs(logits, targets, [paired_iou])
    return torch.stack([ious.amax(dim=1) if ious.shape[1] else ious.new_zeros(len(ious)) for ious in pairs])


def paired_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of every pair: logits [r, pixels], 0/1 targets [m, pixels] -> [r, m]; 0 if both are empty."""
    masks = (logits > 0).float()
    shared = masks @ targets.T
    return shared / (masks.sum(1)[:, None] + targets.sum(1) - shared).clamp(min=1)


def _chunks(masks: list[Tensor]) -> list[Tensor]:
    """Indices of masks [H, W] of one size, as many in a tensor as `CHUNK_BYTES` allows."""
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for number, mask in enumerate(masks):
        by_size[mask.shape].append(number)
    return [
        chunk
        for size, numbers in by_size.items()
        for chunk in torch.tensor(numbers).split(max(1, CHUNK_BYTES // (4 * size.numel())))
    ]
