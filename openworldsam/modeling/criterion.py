"""Losses of matched masks at the resolution of the ground truth (paper Sec. 3 "Training").

Shapes: n matched pairs of one image, h = w = 4S mask side, H, W size of its ground truth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from openworldsam.config import arguments
from openworldsam.modeling.matcher import Matches, focal, match, matching_costs
from openworldsam.utils.device import upload

DIVISORS = ("targets", "matched")
CHUNK_BYTES = 8 * 2**20
"""Logits at the size of the ground truth that exist at a time, at most (one mask at least)."""


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss, averaged over pixels: [n, H, W] logits and 0/1 targets -> [n]."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    weights = torch.where(targets.bool(), alpha, 1 - alpha)
    return (weights * focal(cross_entropy, gamma)).flatten(1).mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - dice of probabilities, smoothed by 1: [n, H, W] logits and 0/1 targets -> [n]."""
    probability, target = logits.sigmoid().flatten(1), targets.flatten(1).to(logits.dtype)
    overlap = 2 * (probability * target).sum(1) + 1
    return 1 - overlap / (probability.sum(1) + target.sum(1) + 1)


class Criterion(nn.Module):
    """Matches queries to ground truth and scores the matched ones; unmatched queries get no loss.

    The loss is the mean over all prompts of the batch. A prompt's loss is the sum over its pairs divided by
    `divisor`: the number of its masks ("targets") or of its pairs ("matched"); a prompt without ground truth
    counts as 0. The arguments are the keys of MODEL.CRITERION, which `config.py` explains.

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
    ) -> None:
        super().__init__()
        if divisor not in DIVISORS:
            raise ValueError(f"MODEL.CRITERION.DIVISOR is one of {DIVISORS}, got {divisor!r}")
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.divisor = divisor
        self.terms: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {}
        if mask_weight:
            self.terms["loss_mask"] = (mask_weight, partial(focal_loss, alpha=focal_alpha, gamma=focal_gamma))
        if dice_weight:
            self.terms["loss_dice"] = (dice_weight, dice_loss)
        if not self.terms:
            raise ValueError("MODEL.CRITERION.MASK_WEIGHT and DICE_WEIGHT are both 0: there is nothing to learn")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return arguments(cfg.MODEL.CRITERION)

    def match(self, logits: Tensor, targets: list[Tensor]) -> Matches:
        """Assign queries to ground truth: logits [P, K, h, w], targets P times bool [N_p, H, W]."""
        return match(self.costs(logits, targets))

    def costs(self, logits: Tensor, targets: list[Tensor]) -> list[Tensor]:
        """Matching costs, P times [K, N_p]."""
        return matching_costs(logits, targets, self.mask_weight, self.dice_weight, self.focal_alpha, self.focal_gamma)

    def forward(self, logits: Tensor, targets: list[Tensor], matches: Matches) -> dict[str, Tensor]:
        """Weighted losses of the matched pairs.

        Full-size masks exist a chunk at a time, in the backward pass too, which computes them again.

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
        shares = 1 / (counts[matches.prompt] * len(targets))
        total = logits.new_zeros(len(self.terms), dtype=torch.float32)
        total = total + logits.float().sum() * 0  # keeps the graph where nothing is matched
        for pairs in _chunks(masks):
            place = torch.tensor(pairs)
            total = total + checkpoint(
                self._losses,
                logits[upload(place, logits.device)].float(),
                [masks[pair] for pair in pairs],
                upload(shares[place], logits.device),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return dict(zip(self.terms, total, strict=True))

    def _losses(self, logits: Tensor, masks: list[Tensor], shares: Tensor) -> Tensor:
        """Weighted losses [terms] of n pairs: logits [n, h, w], n times bool [H, W], their shares [n] in the batch."""
        target = torch.stack(masks)
        full = F.interpolate(logits[:, None], target.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        return torch.stack([weight * (shares * loss(full, target)).sum() for weight, loss in self.terms.values()])


def _chunks(masks: list[Tensor]) -> list[list[int]]:
    """Numbers of masks [H, W] of one size, as many in a list as `CHUNK_BYTES` allows."""
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for number, mask in enumerate(masks):
        by_size[mask.shape].append(number)
    steps = {size: max(1, CHUNK_BYTES // (4 * size.numel())) for size in by_size}
    return [
        numbers[start : start + steps[size]]
        for size, numbers in by_size.items()
        for start in range(0, len(numbers), steps[size])
    ]
