"""Weights made by a rule instead of training: for parity checks, and to try the tools without a download.

A tensor's values depend only on its released name, its shape and a seed, so two implementations that agree on names and
shapes get the same model.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from openworldsam.checkpoint.layouts import DUPLICATES, RELEASED_PREFIX
from openworldsam.checkpoint.loading import training_record
from openworldsam.checkpoint.released import released_state
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import train_tokenizer
from openworldsam.utils.files import save_atomically

NOTE = "rule-made, not trained"
"""Start of the provenance of such weights."""


def rule_stream(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw standard normal float32 numbers from the generator of a name and a seed."""
    key = zlib.crc32(name.encode()) + (seed << 32)
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal(size=shape, dtype=np.float32)


def rule_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Make the tensor of a released name, scaled so that activations neither vanish nor explode."""
    z = rule_stream(name, shape, seed)
    if name.endswith(("positional_tokens", "gaussian_matrix")):
        return z
    if len(shape) >= 2:
        return z / np.float32(math.sqrt(z.size / shape[0]))
    return 1 + np.float32(0.1) * z if name.endswith("weight") else np.float32(0.02) * z


@torch.no_grad()
def save_rule_checkpoint(model: OpenWorldSAM, cfg: CfgNode, seed: int, path: Path) -> None:
    """Fill a model by the rule, in place, and write it as a checkpoint in the released layout, with its config.

    Like the released file, the checkpoint has both encoders twice, in shared memory.
    """
    state = released_state(model)
    for name, tensor in state.items():
        tensor.copy_(torch.from_numpy(rule_tensor(name, tuple(tensor.shape), seed)))
    duplicates = {
        DUPLICATES + name: tensor for name, tensor in state.items() if name.startswith(tuple(RELEASED_PREFIX.values()))
    }
    metadata = {"note": f"{NOTE}, seed {seed}", **training_record(cfg)}
    content = {"model": {**state, **duplicates}, "openworldsam": metadata}
    save_atomically(path, lambda partial: torch.save(content, partial))


def save_tokenizer(path: Path) -> None:
    """Train a small sentencepiece model on COCO's class names, in place of the public beit3.spm."""
    train_tokenizer(path, (category["name"] for category in COCO_CATEGORIES), 290)
