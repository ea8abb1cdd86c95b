"""Hungarian matching of queries to ground-truth masks, prompt by prompt (paper Sec. 3 "Training").

Shapes: P prompts of the batch, K queries per prompt, N_p ground-truth masks of prompt p, h = w = 4S mask side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F


class Matches(NamedTuple):
    """Matched pairs of all prompts, in the order of the prompts and, within one, of the queries.

    prompt, query, target: int64 [pairs] on the CPU; query within its prompt's K, target within its N_p.
    """

    prompt: Tensor
    query: Tensor
    target: Tensor


def focal_terms(logits: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Focal loss of each logit if its target were 1, and if it were 0: a_t (1 - p_t)^gamma CE."""
    probability = logits.sigmoid()
    positive = alpha * (1 - probability) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * probability**gamma * F.softplus(logits)
    return positive, negative


@torch.no_grad()
def matching_costs(
    logits: Tensor,
    targets: Sequence[Tensor],
    mask_weight: float,
    dice_weight: float,
    alpha: float,
    gamma: float,
) -> list[Tensor]:
    """Cost of every query against every ground-truth mask of its prompt.

    Args:
        logits: [P, K, h, w].
        targets: P times bool [N_p, H, W]; resized to h x w by nearest neighbour.
        mask_weight, dice_weight: of the focal and the dice cost; 0 leaves one out.
        alpha, gamma: of the focal cost.

    Returns:
        P times float [K, N_p].
    """
    costs = []
    for p, masks in enumerate(targets):
        if not len(masks):  # interpolate refuses an empty tensor
            costs.append(logits.new_zeros(logits.shape[1], 0))
            continue
        prediction = logits[p].float().flatten(1)
        target = F.interpolate(masks[None].float(), logits.shape[-2:], mode="nearest")[0].flatten(1)
        cost = logits.new_zeros(logits.shape[1], len(masks), dtype=torch.float32)
        if mask_weight:
            positive, negative = focal_terms(prediction, alpha, gamma)
            cost += mask_weight * (positive @ target.T + negative @ (1 - target).T) / target.shape[1]
        if dice_weight:
            probability = prediction.sigmoid()
            overlap = 2 * probability @ target.T + 1
            total = probability.sum(1)[:, None] + target.sum(1)[None] + 1
            cost += dice_weight * (1 - overlap / total)
        costs.append(torch.nan_to_num(cost, nan=1e6))
    return costs


def match(costs: Sequence[Tensor]) -> Matches:
    """The cheapest assignment of each prompt; one copy to the host for the whole batch.

    Args:
        costs: P times [K, N_p]; N_p may be 0 or exceed K (then K of its masks are matched).
    """
    triples: list[tuple[int, int, int]] = []
    host = torch.cat([cost.flatten() for cost in costs]).cpu() if costs else torch.zeros(0)
    for p, flat in enumerate(host.split([cost.numel() for cost in costs])):
        queries, targets = linear_sum_assignment(flat.view(costs[p].shape).numpy())
        triples.extend((p, int(q), int(t)) for q, t in zip(queries, targets, strict=True))
    prompt, query, target = torch.tensor(triples, dtype=torch.long).reshape(-1, 3).T
    return Matches(prompt, query, target)
