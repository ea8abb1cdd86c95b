"""Golden files, and the tolerances by which an array counts as equal to a recorded one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tabulate import tabulate
from torch import Tensor

from openworldsam.utils.files import regular_file

ABSOLUTE, RELATIVE = 1e-4, 1e-3
"""Floats: |a - b| <= 1e-4 + 1e-3 |b|; fp32 sums in another order differ by that much."""
RELATIVE_L2 = 1e-4
"""Arrays of large values: |a - b| / |b| in the L2 norm."""
RELATIVE_MAX = 1e-4
"""Losses, costs and gradients: relative to the largest value."""
TIE = 1e-5
"""Scores closer than this may be in either order."""
PIXELS = 1e-3
"""Areas and maps: the fraction of pixels that may differ."""


class Golden(dict[str, np.ndarray]):
    """Recorded arrays of a file by name; looking up one that it lacks raises ValueError."""

    def __init__(self, path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise ValueError(f"{self.path} is not a golden file: it has no {name!r}")


Values = Tensor | np.ndarray


def read_golden(path: str | Path) -> Golden:
    """Read a golden file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged or not an .npz.
    """
    try:
        with np.load(regular_file(path)) as file:
            return Golden(path, dict(file))
    except OSError:
        raise
    except Exception as error:  # a damaged archive makes NumPy raise almost anything
        raise ValueError(f"{path} is not a golden file: {error}") from error


class Check(NamedTuple):
    """A quantity, its largest error, the tolerance in words, and whether it holds."""

    quantity: str
    error: float
    tolerance: str
    ok: bool


def _check(
    quantity: str,
    ours: Values,
    golden: np.ndarray,
    tolerance: str,
    measure: Callable[[np.ndarray, np.ndarray], tuple[ArrayLike, ArrayLike]],
) -> Check:
    """Compare in float64; `measure` returns the errors and the limit of each. Another shape is an infinite error."""
    a = (ours.detach().cpu().numpy() if isinstance(ours, Tensor) else np.asarray(ours)).astype(np.float64)
    b = np.asarray(golden).astype(np.float64)
    if a.shape != b.shape:
        return Check(quantity, np.inf, f"shape {b.shape}, got {a.shape}", False)
    errors, limits = map(np.asarray, measure(a, b))
    return Check(quantity, float(errors.max(initial=0)), tolerance, bool((errors <= limits).all()))


def close(quantity: str, ours: Values, golden: np.ndarray) -> Check:
    """Compare floats element by element."""
    limit = "1e-4 + 1e-3 |b|"
    return _check(quantity, ours, golden, limit, lambda a, b: (np.abs(a - b), ABSOLUTE + RELATIVE * np.abs(b)))


def close_in_norm(quantity: str, ours: Values, golden: np.ndarray) -> Check:
    """Compare arrays of large values by their relative L2 error."""
    limit = f"{RELATIVE_L2:.0e} relative L2"
    return _check(quantity, ours, golden, limit, lambda a, b: (np.linalg.norm(a - b) / np.linalg.norm(b), RELATIVE_L2))


def close_to_largest(quantity: str, ours: Values, golden: np.ndarray, tolerance: float = RELATIVE_MAX) -> Check:
    """Compare losses, costs and gradients by their error relative to the largest value."""
    limit, tiny = f"{tolerance:.0e} of the largest", np.finfo(np.float64).tiny
    return _check(quantity, ours, golden, limit, lambda a, b: (np.abs(a - b) / np.abs(b).max(initial=tiny), tolerance))


def equal(quantity: str, ours: Values, golden: np.ndarray, ties: int = 0) -> Check:
    """Compare integers; `ties` is the number of entries that `align_ties` has moved."""
    tolerance = f"equal but for {ties} ties" if ties else "equal"
    return _check(quantity, ours, golden, tolerance, lambda a, b: (np.abs(a - b), 0))


def same_areas(quantity: str, ours: Values, golden: np.ndarray, num_pixels: int) -> Check:
    """Compare areas in pixels, relative to the image."""
    limit = f"{PIXELS:.0e} of the pixels"
    return _check(quantity, ours, golden, limit, lambda a, b: (np.abs(a - b) / num_pixels, PIXELS))


def same_map(quantity: str, ours: Values, golden: np.ndarray) -> Check:
    """Compare maps and masks pixel by pixel."""
    limit = f"{PIXELS:.0e} of the pixels"
    return _check(quantity, ours, golden, limit, lambda a, b: (np.count_nonzero(a != b) / max(a.size, 1), PIXELS))


def align_ties(labels: np.ndarray, golden_labels: np.ndarray, golden_scores: np.ndarray) -> np.ndarray:
    """Reorder entries with nearly equal scores as the golden file has them.

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


def format_checks(checks: list[Check]) -> str:
    """A table of the checks and a line with the verdict."""
    rows = [(c.quantity, f"{c.error:.2e}", c.tolerance, "ok" if c.ok else "FAILED") for c in checks]
    table = tabulate(rows, headers=["quantity", "largest error", "tolerance", ""], disable_numparse=True)
    failed = [c.quantity for c in checks if not c.ok]
    verdict = f"{len(failed)} of {len(checks)} failed: {', '.join(failed)}" if failed else f"all {len(checks)} hold"
    return f"{table}\n\n{verdict}"
