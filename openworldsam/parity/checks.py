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


def close_to_largest(quantity: str, ours: Tensor | np.ndarray, golden: np.ndarray) -> Check:
    """Losses, costs and gradients, by their error relative to the largest value."""
    a, b = _arrays(ours, golden)
    if wrong := _wrong_shape(quantity, a, b):
        return wrong
    largest = np.abs(b).max(initial=np.finfo(np.float64).tiny)
    error = float(np.abs(a - b).max(initial=0) / largest)
    return Check(quantity, error, f"{RELATIVE_MAX:.0e} of the largest", error <= RELATIVE_MAX)


def equal(quantity: str, ours: Tensor | np.ndarray, golden: np.ndarray, scores: np.ndarray | None = None) -> Check:
    """Whole numbers; with `scores`, entries whose score nearly ties with another one's may differ."""
    a, b = _arrays(ours, golden)
    if wrong := _wrong_shape(quantity, a, b):
        return wrong
    different = a != b
    tolerance = "equal"
    if scores is not None and different.any():
        gaps = np.abs(scores[:, None] - scores[None]) + np.diag(np.full(len(scores), np.inf))
        tied = gaps.min(axis=1) < TIE
        if (different & tied).any():
            tolerance = f"equal but for ties ({int((different & tied).sum())})"
        different &= ~tied
    return Check(quantity, float(np.abs(a - b)[different].max(initial=0)), tolerance, not different.any())


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
