"""One row of the parity table, and the rules by which two arrays count as equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tabulate import tabulate
from torch import Tensor

ABSOLUTE, RELATIVE = 1e-4, 1e-3
"""Floats: |a - b| <= 1e-4 + 1e-3 |b|; fp32 sums in another order differ by that much."""
RELATIVE_L2 = 1e-4
"""Arrays of large values: |a - b| / |b| in the L2 norm."""
RELATIVE_MAX = 1e-4
"""Losses, costs and gradients: relative to the largest value."""
TIE = 1e-5
"""Scores closer than this may fall either way."""
PIXELS = 1e-3
"""Areas and maps: the fraction of pixels that may differ."""


class Check(NamedTuple):
    """A quantity, its largest error, the tolerance in words, and whether it holds."""

    quantity: str
    error: float
    tolerance: str
    ok: bool


def _arrays(ours: Tensor | np.ndarray, golden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    array = ours.detach().cpu().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    return array.astype(np.float64), np.asarray(golden).astype(np.float64)


def _wrong_shape(quantity: str, a: np.ndarray, b: np.ndarray) -> Check | None:
    if a.shape == b.shape:
        return None
    return Check(quantity, np.inf, f"shape {b.shape}, got {a.shape}", False)


def close(quantity: str, ours: Tensor | np.ndarray, golden: np.ndarray) -> Check:
    """Floats, element by element."""
    a, b = _arrays(ours, golden)
    if wrong := _wrong_shape(quantity, a, b):
        return wrong
    error = np.abs(a - b)
    ok = bool((error <= ABSOLUTE + RELATIVE * np.abs(b)).all())
    return Check(quantity, float(error.max(initial=0)), "1e-4 + 1e-3 |b|", ok)


def close_in_norm(quantity: str, ours: Tensor | np.ndarray, golden: np.ndarray) -> Check:
    """Arrays of large values, by their relative L2 error."""
    a, b = _arrays(ours, golden)
    if wrong := _wrong_shape(quantity, a, b):
        return wrong
    error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    return Check(quantity, error, f"{RELATIVE_L2:.0e} relative L2", error <= RELATIVE_L2)


def close_to_largest(
    quantity: str, ours: Tensor | np.ndarray, golden: np.ndarray, tolerance: float = RELATIVE_MAX
) -> Check:
    """Losses, costs and gradients, by their error relative to the largest value."""
    a, b = _arrays(ours, golden)
    if wrong := _wrong_shape(quantity, a, b):
        return wrong
    largest = np.abs(b).max(initial=np.finfo(np.float64).tiny)
    error = float(np.abs(a - b).max(initial=0) / largest)
    return Check(quantity, error, f"{tolerance:.0e} of the largest", error <= tolerance)


def align_ties(labels: np.ndarray, golden_labels: np.ndarray, golden_scores: np.ndarray) -> np.ndarray:
    """Order of our entries that puts nearly equal scores the way the golden file has them.

    Args:
        labels, golden_labels: [N], in descending order of score.
        golden_scores: [N].

    Returns:
        a permutation of 0..N-1; the identity where the lengths differ.
    """
    order = list(range(len(labels)))
    if len(labels) != len(golden_labels):
        return np.array(order, dtype=int)
    start = 0
    for stop in range(1, len(order) + 1):
        if stop < len(order) and abs(golden_scores[stop - 1] - golden_scores[stop]) < TIE:
            continue
        free = order[start:stop]
        for place in range(start, stop):
            wanted = [entry for entry in free if labels[entry] == golden_labels[place]]
            order[place] = (wanted or free)[0]
            free.remove(order[place])
        start = stop
    return np.array(order, dtype=int)


def equal(quantity: str, ours: Tensor | np.ndarray, golden: np.ndarray, ties: int = 0) -> Check:
    """Whole numbers; `ties` says how many entries `align_ties` has moved."""
    a, b = _arrays(ours, golden)
    if wrong := _wrong_shape(quantity, a, b):
        return wrong
    error = float(np.abs(a - b).max(initial=0))
    return Check(quantity, error, f"equal but for {ties} ties" if ties else "equal", error == 0)


def same_areas(quantity: str, ours: Tensor | np.ndarray, golden: np.ndarray, num_pixels: int) -> Check:
    """Areas in pixels."""
    a, b = _arrays(ours, golden)
    if wrong := _wrong_shape(quantity, a, b):
        return wrong
    error = float(np.abs(a - b).max(initial=0) / num_pixels)
    return Check(quantity, error, f"{PIXELS:.0e} of the pixels", error <= PIXELS)


def same_map(quantity: str, ours: Tensor | np.ndarray, golden: np.ndarray) -> Check:
    """Maps and masks, pixel by pixel."""
    a, b = _arrays(ours, golden)
    if wrong := _wrong_shape(quantity, a, b):
        return wrong
    error = float((a != b).mean()) if a.size else 0.0
    return Check(quantity, error, f"{PIXELS:.0e} of the pixels", error <= PIXELS)


def format_checks(checks: list[Check]) -> str:
    """The table, and a line that sums it up."""
    rows = [(c.quantity, f"{c.error:.2e}", c.tolerance, "ok" if c.ok else "FAILED") for c in checks]
    table = tabulate(rows, headers=["quantity", "largest error", "tolerance", ""], disable_numparse=True)
    failed = [c.quantity for c in checks if not c.ok]
    verdict = f"{len(failed)} of {len(checks)} failed: {', '.join(failed)}" if failed else f"all {len(checks)} hold"
    return f"{table}\n\n{verdict}"
