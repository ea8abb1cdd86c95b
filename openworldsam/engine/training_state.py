"""Everything that a training needs to go on as if it had never stopped, in one file written at once."""

from __future__ import annotations

import logging
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

from openworldsam.checkpoint.writing import save_atomically

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"
"""File in the output folder that names the newest state."""


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
    """Write `state_<iteration>.pth` and then point `last_checkpoint` at it; all processes call it, one writes.

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
        for left_over in folder.glob(f".{path.stem[:6]}*.part"):  # of a process that was killed while it wrote
            left_over.unlink()
        content = {**state, "iteration": iteration, "generators": generators}
        save_atomically(path, partial(_save, content))
        save_atomically(folder / LAST, lambda partial_path: partial_path.write_text(path.name))
    comm.synchronize()
    return path


def _save(content: dict[str, Any], path: Path) -> None:
    torch.save(content, path)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest state in a folder, or None if there is none; the random generators are put back.

    Raises:
        ValueError: the state is damaged.
    """
    pointer = folder / LAST
    if not pointer.is_file():
        return None
    path = folder / pointer.read_text().strip()
    if not path.is_file():
        raise ValueError(f"{pointer} names {path.name}, which is not there; name one that is in it")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); name an older state in {pointer}") from error
    generators = state.pop("generators")
    if len(generators) == comm.get_world_size():
        set_rng_state(generators[comm.get_rank()])
    else:
        logger.warning(
            "%s was written by %d processes, these are %d: dropout will draw otherwise",
            *(path, len(generators), comm.get_world_size()),
        )
    return state
