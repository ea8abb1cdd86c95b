"""Hungarian matching of queries to ground-truth masks, prompt by prompt (paper Sec. 3 "Training").

Shapes: P prompts of the batch, K queries per prompt, N_p ground-truth masks of prompt p, h = w = 4S mask side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

CHUNK_BYTES = 16 * 2**20
"""Most bytes of logits whose costs are computed at a time (those of one prompt at least)."""


class Matches(NamedTuple):
    """Matched pairs of all prompts, in the order of the prompts and, within one, of the queries.

    prompt, query, target: int64 [pairs] on the CPU; query within its prompt's K, target within its N_p.
    """

    prompt: Tensor
    query: Tensor
    target: Tensor


@torch.no_grad()
def matching_costs(
    logits: Tensor,
    targets: Sequence[Tensor],
    pair_costs: Sequence[Callable[[Tensor, Tensor], Tensor]],
) -> list[Tensor]:
    """Cost of every query against every ground-truth mask of its prompt.

    Prompts are computed together, as many as `CHUNK_BYTES` allows, all their queries against all their masks: the
    products with the masks of other prompts cost little beside the rest.

    Args:
        logits: [P, K, h, w].
        targets: P times bool [N_p, H, W]; resized to h x w by nearest neighbour.
        pair_costs: to be added; each turns logits [r, pixels] and 0/1 targets [m, pixels] into costs [r, m].

    Returns:
        P times float [K, N_p].
    """
    costs = [logits.new_zeros(logits.shape[1], len(masks), dtype=torch.float32) for masks in targets]
    prompts = [p for p, masks in enumerate(targets) if len(masks)]
    step = max(1, CHUNK_BYTES // (4 * logits.shape[1:].numel()))
    for part in (prompts[start : start + step] for start in range(0, len(prompts), step)):
        target = torch.cat([_nearest(targets[p], logits.shape[2:]) for p in part]).flatten(1).float()
        prediction = torch.stack([logits[p] for p in part]).flatten(0, 1).flatten(1).float()
        cost = torch.stack([pair_cost(prediction, target) for pair_cost in pair_costs]).sum(0)
        by_prompt = torch.nan_to_num(cost, nan=1e6).split(logits.shape[1])
        ends = np.cumsum([len(targets[p]) for p in part])
        for p, own, end in zip(part, by_prompt, ends, strict=True):
            costs[p] = own[:, end - len(targets[p]) : end]
    return costs


def _nearest(masks: Tensor, size: torch.Size) -> Tensor:
    """Resize by nearest neighbour as `F.interpolate` does, without a float copy: [N, H, W] -> [N, h, w]."""
    rows, columns = (
        F.interpolate(torch.arange(old, dtype=torch.float32, device=masks.device)[None, None], new)[0, 0].long()
        for old, new in zip(masks.shape[1:], size, strict=True)
    )
    return masks[:, rows[:, None], columns]


def match(costs: Sequence[Tensor]) -> Matches:
    """Find the cheapest assignment of each prompt, with one copy to the host for the whole batch.

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
