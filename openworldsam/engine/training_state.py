"""Training states: files from which a training resumes as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

from openworldsam.checkpoint.loading import training_record
from openworldsam.config import config_value
from openworldsam.engine.trainer import Trainer
from openworldsam.modeling.prompt_encoders import prompt_encoder_class
from openworldsam.utils.files import output_file, regular_file, save_atomically

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
"""File in the output folder with a line of JSON for each logged step."""
KEYS = {"iteration", "generators", "trained", "optimizer", "scheduler", "scaler", "skipped", "record", "weights"}


def newest_state(folder: Path) -> Path | None:
    """The state of the highest iteration in a folder, or None if there is none."""
    return max(folder.glob("state_*.pth"), default=None)


def save_state(trainer: Trainer) -> None:
    """Write `state_<steps done>.pth`, complete or not at all; all processes call it, one writes.

    Raises:
        OSError: the disk is full, for example; earlier states are untouched.
    """
    generators = comm.all_gather(_generators())
    if comm.is_main_process():
        content = {
            "iteration": trainer.iter + 1,
            "generators": generators,
            "trained": {name: p.detach().cpu() for name, p in trainer.model.named_parameters() if p.requires_grad},
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.scheduler.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "skipped": trainer.all_skipped,
            "confusions": trainer.confusions.scores,
            "record": _recipe(trainer),
            "weights": _fingerprints(trainer),
        }
        save_atomically(trainer.folder / f"state_{trainer.iter + 1:07d}.pth", lambda path: torch.save(content, path))
    comm.synchronize()


def resume(trainer: Trainer) -> None:
    """Continue from the newest state in OUTPUT_DIR, if there is one.

    Raises:
        ValueError: the newest state is damaged, or of another preset, other encoders, another seed or batch size.
    """
    folder = trainer.folder
    if (path := newest_state(folder)) is None:
        return
    state = _load(path)
    for name, ours in (("record", _recipe(trainer)), ("weights", _fingerprints(trainer))):
        # a key that an earlier version did not record cannot be compared
        if different := sorted(key for key, value in state[name].items() if ours.get(key, value) != value):
            raise ValueError(f"{folder} was trained with another {', '.join(different)}; use another OUTPUT_DIR")
    parameters = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in state["trained"].items()}:
        raise ValueError(f"{folder} was trained with other layers; use another OUTPUT_DIR")
    if state["iteration"] > trainer.max_iter:
        raise ValueError(f"{folder} is at iteration {state['iteration']}, beyond MAX_ITER {trainer.max_iter}")
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scheduler.load_state_dict(state["scheduler"])
    # the optimizer's rate is that of the schedule before, and the scheduler sets one only after a step
    for group, rate in zip(trainer.optimizer.param_groups, trainer.scheduler.get_lr(), strict=True):
        group["lr"] = rate
    trainer.scaler.load_state_dict(state["scaler"])
    with torch.no_grad():
        for name, value in state["trained"].items():
            parameters[name].copy_(value)
    if len(state["generators"]) == comm.get_world_size():
        _set_generators(state["generators"][comm.get_rank()])
    else:
        logger.warning(
            "the state was written by %d processes, but %d are running: dropout will draw differently",
            *(len(state["generators"]), comm.get_world_size()),
        )
    trainer.confusions.scores = dict(state.get("confusions", {}))  # an earlier version had none
    trainer.skipped = state["skipped"] if comm.is_main_process() else 0
    trainer.start_iter = trainer.iter = state["iteration"]
    logger.info("resumed at iteration %d", trainer.start_iter)


def forget_metrics(path: Path, start: int) -> None:
    """Drop the lines of steps from `start` on, which are about to be repeated, and one that a kill cut short."""
    if output_file(path).is_file():
        kept = [line for line, values in read_metrics(path) if values["iteration"] < start]
        save_atomically(path, lambda partial_path: partial_path.write_text("".join(kept)))


def read_metrics(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the lines of metrics.json with their values; no line if there is no file, nor one that is cut short."""
    found = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        try:
            values = json.loads(line)
            if values["iteration"] >= 0:
                found.append((line, values))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _load(path: Path) -> dict[str, Any]:
    """The content of a state file; raises ValueError if it is damaged."""
    advice = "delete it to continue from the previous state"
    try:
        state = torch.load(regular_file(path), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); {advice}") from error
    if lacking := KEYS - (state.keys() if isinstance(state, dict) else set()):
        raise ValueError(f"{path} is no training state, it lacks {', '.join(sorted(lacking))}; {advice}")
    return state


def _recipe(trainer: Trainer) -> dict[str, str]:
    """Settings that a resumed training must share: the adapter's recipe, and everything that orders the images.

    The length of the training, its learning rate schedule and the dataset folders may change.
    """
    cfg, images = trainer.cfg, hashlib.sha256()
    for record in trainer.dataset.records:
        images.update(f"{record['image_id']} ".encode())
    keys = ["SEED", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "DATASETS.TRAIN"]
    keys += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "MODEL.PRECISION", "MODEL.SAM2.IMAGE_SIZE"]
    keys += ["INPUT.ANTIALIAS", *prompt_encoder_class(cfg).settings]
    keys += ["INPUT.MAX_PROMPTS", "INPUT.NEGATIVES", "INPUT.FLIP", "INPUT.LARGE_SCALE_JITTER"]
    keys += [f"MODEL.{node}.{key}" for node in ("ADAPTER", "CRITERION") for key in cfg.MODEL[node]]
    keys += ["MODEL.SCORE_HEAD.HIDDEN", "MODEL.SCORE_HEAD.DROPOUT"]
    settings = {key: str(config_value(cfg, key)) for key in keys}
    return {**training_record(cfg), **settings, "list of images": images.hexdigest()[:16]}


def _fingerprints(trainer: Trainer) -> dict[str, str]:
    """Fingerprints of the weights that the training does not change, or only together with the adapter."""
    trained = ("adapter", "score_head") if trainer.model.train_adapter else ("score_head",)
    return {name: source.fingerprint for name, source in trainer.sources.items() if name not in trained}


def _generators() -> dict[str, Any]:
    """The state of this process's random generators."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    name, keys, *rest = np.random.get_state()  # type: ignore[misc]
    numpy_state = (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest)
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy_state, "python": random.getstate()}


def _set_generators(state: dict[str, Any]) -> None:
    """Restore this process's random generators to a state of `_generators`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
