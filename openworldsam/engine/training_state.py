"""Everything that a training needs to go on as if it had never stopped, in one file written at once."""

from __future__ import annotations

import json
import logging
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

from openworldsam.utils.files import save_atomically

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
"""File in the output folder with a line of numbers for each logged step."""
KEYS = {"iteration", "generators", "trained", "optimizer", "scheduler", "scaler", "skipped", "record", "weights"}


def rng_state() -> dict[str, Any]:
    """The random generators of this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    name, keys, *rest = np.random.get_state()  # type: ignore[misc]
    numpy_state = (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest)
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy_state, "python": random.getstate()}


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the random generators of this process back to `rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def save_state(folder: Path, iteration: int, state: dict[str, Any]) -> Path:
    """Write `state_<iteration>.pth`, complete or not at all; all processes call it, one writes.

    Args:
        folder: the output folder.
        iteration: number of steps done.
        state: of the trainer; the random state of every process is added.

    Raises:
        OSError: the disk is full, say; the states before are untouched.
    """
    generators = comm.all_gather(rng_state())
    path = folder / f"state_{iteration:07d}.pth"
    if comm.is_main_process():
        for left_over in folder.glob(".*.part"):  # of a process that was killed while it wrote
            left_over.unlink()
        save_atomically(path, partial(_save, {**state, "iteration": iteration, "generators": generators}))
    comm.synchronize()
    return path


def _save(content: dict[str, Any], path: Path) -> None:
    torch.save(content, path)


def newest_state(folder: Path) -> Path | None:
    """The state of the highest iteration in a folder, or None if there is none."""
    return max(folder.glob("state_*.pth"), default=None)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest state in a folder, or None if there is none.

    Raises:
        ValueError: the state is damaged.
    """
    path = newest_state(folder)
    if path is None:
        return None
    advice = "delete it to go on from the state before"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); {advice}") from error
    if lacking := KEYS - (state.keys() if isinstance(state, dict) else set()):
        raise ValueError(f"{path} is no training state, it lacks {', '.join(sorted(lacking))}; {advice}")
    return state


def restore_generators(states: list[dict[str, Any]]) -> None:
    """Put the random generators of all processes back."""
    if len(states) == comm.get_world_size():
        set_rng_state(states[comm.get_rank()])
    else:
        logger.warning(
            "the state was written by %d processes, these are %d: dropout will draw otherwise",
            *(len(states), comm.get_world_size()),
        )


def forget_metrics(path: Path, start: int) -> None:
    """Drop the lines of steps from `start` on, which are about to be done again, and one that a kill cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["iteration"] < start:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    save_atomically(path, lambda partial_path: partial_path.write_text("".join(kept)))
