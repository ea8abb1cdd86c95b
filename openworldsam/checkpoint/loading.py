"""Weight files into a model: strict, with advice when something does not fit."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from openworldsam.checkpoint.layouts import Source, StateDict, WeightFile, read_weights, renamed
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.utils.device import keep_freed_memory

logger = logging.getLogger(__name__)

MODULES = {"sam2": ("image_encoder", "mask_decoder"), "beit3": ("prompt_encoder",), "adapter": ("adapter",)}
"""The model's modules that a component fills."""
PREFIXES = {
    "sam2": (
        ("image_encoder.", "image_encoder.backbone."),
        ("no_mem_embed", "image_encoder.no_mem_embed"),
        ("sam_mask_decoder.conv_s", "image_encoder.conv_s"),
        ("sam_mask_decoder.", "mask_decoder.decoder."),
        ("sam_prompt_encoder.", "mask_decoder.prompt_encoder."),
    ),
    "beit3": (("beit3.", "prompt_encoder.beit3."),),
    "adapter": (("adapter.", "adapter."),),
}
"""(public name, name in the model) by prefix; the first that fits counts."""
SAM2_VIDEO = (
    "memory_attention.",
    "memory_encoder.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
    "mask_downsample.",
)
"""Tensors of SAM2 that only video needs; the model has no place for them."""
TRAINED_WITH = ("ADAPTER.FUSION", "ADAPTER.INTERACTION", "ADAPTER.KEY_POSITIONS", "PROMPT_ENCODER.USE_IMAGE")
"""Keys below MODEL that shape no tensor but change what the adapter learns; its file records them."""
SAM2_BLOCKS = {12: "tiny", 16: "small", 24: "base_plus", 48: "large"}
BEIT3_WIDTHS = {768: "base", 1024: "large"}


def load_weights(model: OpenWorldSAM, cfg: CfgNode, *, need_adapter: bool = True) -> dict[str, Source]:
    """Fill a model from MODEL.WEIGHTS, MODEL.SAM2.WEIGHTS and MODEL.PROMPT_ENCODER.WEIGHTS.

    A full checkpoint in MODEL.WEIGHTS brings everything; the other two are then not read. On an error the frozen
    modules are left empty.

    Args:
        model: an `OpenWorldSAM`.
        cfg: its config.
        need_adapter: False, where a training begins, leaves a missing adapter as it was initialised, and of one with
            more tie-breakers than the model takes the first.

    Returns:
        the source of each component.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no file holds a component, or it does not fit the model.
    """
    device = next(model.get_submodule("adapter").parameters()).device
    brings_its_own = getattr(model.get_submodule("prompt_encoder"), "component", None) is None
    needed = [component for component in MODULES if component != "beit3" or not brings_its_own]
    for component in needed:
        for module in map(model.get_submodule, MODULES[component]):
            if _is_frozen(module):
                module.to("meta")  # gives its memory back before the files take theirs
    files = component_files(cfg, needed)
    _check_complete([c for c in needed if c != "adapter" or need_adapter], files)
    sources: dict[str, Source] = {}
    for component, file in files.items():
        load_component(model, component, file, fewer_tie_breakers=not need_adapter)
        sources[component] = file.source(component)
        logger.info("%s weights from %s (%s)", component, file.path, file.layout)
    model.store_frozen_weights()
    model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    if "adapter" in files:
        _warn_of_other_training(files["adapter"], sources, cfg)
    return sources


def component_files(cfg: CfgNode, needed: Sequence[str]) -> dict[str, WeightFile]:
    """Read the configured weight files.

    Args:
        cfg: with MODEL.WEIGHTS, MODEL.SAM2.WEIGHTS and MODEL.PROMPT_ENCODER.WEIGHTS.
        needed: components.

    Returns:
        the file of each component that one of them brings.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or holds nothing of what its key is for.
    """
    found: dict[str, WeightFile] = {}
    read: dict[str, WeightFile] = {}
    for key, path, holds in (
        ("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, ("sam2", "beit3", "adapter")),
        ("MODEL.SAM2.WEIGHTS", cfg.MODEL.SAM2.WEIGHTS, ("sam2",)),
        ("MODEL.PROMPT_ENCODER.WEIGHTS", cfg.MODEL.PROMPT_ENCODER.WEIGHTS, ("beit3",)),
    ):
        components = [component for component in holds if component in needed]
        if not path or found.keys() >= set(components):
            continue
        if path not in read:
            read[path] = read_weights(path)
        file = read[path]
        if not set(components) & file.components.keys():
            raise ValueError(f"{path} ({file.layout}) holds no {' or '.join(components)} weights; {key} needs them")
        for component in components:
            if component in file.components:
                found.setdefault(component, file)
    return found


def find_source(component: str, cfg: CfgNode) -> Source | None:
    """The source of a component in the configured files, without a model; None if no file is there or holds it."""
    paths = (cfg.MODEL.WEIGHTS, cfg.MODEL.SAM2.WEIGHTS, cfg.MODEL.PROMPT_ENCODER.WEIGHTS)
    for path in dict.fromkeys(path for path in paths if path and Path(path).exists()):
        file = read_weights(path)
        if component in file.components:
            return file.source(component)
    return None


def load_component(model: nn.Module, component: str, file: WeightFile, *, fewer_tie_breakers: bool = False) -> None:
    """Fill one component's modules; every tensor must be there, fit, and be known.

    Frozen tensors stay in the memory-mapped file, so that a 3.6 GB checkpoint takes its memory once.

    Args:
        model: an `OpenWorldSAM`.
        component: "sam2", "beit3" or "adapter".
        file: that holds it.
        fewer_tie_breakers: the model may have fewer than the file; it gets the first.

    Raises:
        ValueError: a missing, unexpected or wrongly shaped tensor; says which and what to do.
    """
    public = {n: t for n, t in file.components[component].items() if not n.startswith(SAM2_VIDEO)}
    state = {renamed(name, PREFIXES[component]) or name: tensor.float() for name, tensor in public.items()}
    expected = {
        f"{module}.{name}": tensor
        for module in MODULES[component]
        for name, tensor in model.get_submodule(module).state_dict().items()
    }
    positions = "prompt_encoder.beit3.encoder.embed_positions.A.weight"
    if component == "beit3" and positions in state and positions in expected:
        state[positions] = resize_positions(state[positions], len(expected[positions]))
    ties = "adapter.tie_breakers"
    if fewer_tie_breakers and ties in state and 0 < len(expected.get(ties, ())) < len(state[ties]):
        wanted = len(expected[ties])
        logger.info("the first %d of the %d tie-breakers of %s", wanted, len(state[ties]), file.path)
        state[ties] = state[ties][:wanted]
    if problems := misfits(state, expected):
        raise ValueError(
            f"{file.path} ({file.layout}) does not fit the configured {component}: {problems}. "
            f"{_advice(component, public)}"
        )
    for module in MODULES[component]:
        target = model.get_submodule(module)
        own = {n.removeprefix(f"{module}."): t for n, t in state.items() if n.startswith(f"{module}.")}
        on_meta = any(p.is_meta for p in target.parameters())  # which has no memory to copy to
        target.load_state_dict(own, assign=_is_frozen(target) or on_meta)


def misfits(state: StateDict, expected: StateDict) -> str:
    """Which tensors are missing, unexpected or of another shape, in a line; empty if all fit."""
    problems = [
        *(f"missing {name}" for name in expected.keys() - state.keys()),
        *(f"unexpected {name}" for name in state.keys() - expected.keys()),
        *(
            f"{name} is {tuple(state[name].shape)}, in the model {tuple(expected[name].shape)}"
            for name in expected.keys() & state.keys()
            if state[name].shape != expected[name].shape
        ),
    ]
    return "; ".join(sorted(problems)[:4]) + (f"; {len(problems) - 4} more" if len(problems) > 4 else "")


def _is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def resize_positions(table: Tensor, rows: int) -> Tensor:
    """Fit BEiT-3's vision positions to another image size.

    Args:
        table: [3 + n * n, D]; two unused rows, the CLS token's, and those of n x n patches.
        rows: 3 + m * m.

    Returns:
        [3 + m * m, D], the patches' part interpolated bicubically; anything else than such a table as it is.
    """
    if table.ndim != 2 or len(table) == rows:
        return table
    old, new = math.isqrt(max(0, len(table) - 3)), math.isqrt(rows - 3)
    if not old or old * old + 3 != len(table):
        return table
    grid = table[3:].T.reshape(1, -1, old, old)
    resized = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    logger.info("BEiT-3 positions interpolated from %d x %d to %d x %d patches", old, old, new, new)
    return torch.cat([table[:3], resized[0].flatten(1).T])


def _advice(component: str, public: StateDict) -> str:
    """What the file seems to hold, and how to configure that."""
    if component == "sam2":
        blocks = {name.split(".")[3] for name in public if name.startswith("image_encoder.trunk.blocks.")}
        name = SAM2_BLOCKS.get(len(blocks), "unknown")
        return (
            f"It holds a Hiera of {len(blocks)} blocks ({name}). The default is large (48 blocks); configs/encoders/ "
            "has the other public sizes."
        )
    if component == "beit3":
        name = "beit3.encoder.layer_norm.A.weight"
        width = public[name].numel() if name in public else 0
        return (
            f"It holds a BEiT-3 of width {width} ({BEIT3_WIDTHS.get(width, 'unknown')}); "
            "configs/encoders/beit3_base.yaml configures base, the default is large."
        )
    name = "adapter.tie_breakers"
    queries = public[name].shape[0] if name in public and public[name].ndim else 0
    layers = {name.split(".")[3] for name in public if name.startswith("adapter.soft_prompt.layers.")}
    return f"It wants MODEL.ADAPTER.NUM_TIE_BREAKERS {queries} and MODEL.ADAPTER.NUM_LAYERS {len(layers)}."


def training_record(cfg: CfgNode) -> dict[str, str]:
    """What the tensors do not show of how an adapter is trained; stands in the metadata of its file."""
    values = {key: key.split(".") for key in TRAINED_WITH}
    return {"preset": cfg.PRESET, **{key: str(cfg.MODEL[room][name]) for key, (room, name) in values.items()}}


def provenance(cfg: CfgNode, sources: Mapping[str, Source]) -> dict[str, Any]:
    """What a result comes from: the preset, and the files of the weights by component."""
    return {"preset": cfg.PRESET, "weights": {component: asdict(source) for component, source in sources.items()}}


def _check_complete(needed: Sequence[str], files: Mapping[str, WeightFile]) -> None:
    missing = [component for component in needed if component not in files]
    if not missing:
        return
    if not files:
        raise ValueError(
            "no weights: set MODEL.WEIGHTS to a full checkpoint, which holds everything (python weights/download.py "
            "openworldsam_coco), or give adapter and encoders one by one, see weights/README.md"
        )
    advice = {
        "adapter": "MODEL.WEIGHTS to an adapter file",
        "sam2": "MODEL.SAM2.WEIGHTS (python weights/download.py sam2_hiera_large)",
        "beit3": "MODEL.PROMPT_ENCODER.WEIGHTS (python weights/download.py beit3_large, or evf_sam2_multitask as the "
        "released code uses)",
    }
    given = ", ".join(f"{component} from {files[component].path}" for component in MODULES if component in files)
    wanted = ", ".join(advice[component] for component in missing)
    raise ValueError(f"no weights for {' and '.join(missing)} (only {given}): set {wanted}")


def _warn_of_other_training(file: WeightFile, sources: dict[str, Source], cfg: CfgNode) -> None:
    """Say so when an adapter is used otherwise than it was trained; that may be an experiment, or a mistake."""
    configured = training_record(cfg)
    for key in TRAINED_WITH:
        recorded = file.metadata.get(key, configured[key])
        if recorded != configured[key]:
            preset = file.metadata.get("preset", "its preset")
            logger.warning(
                "%s was trained with MODEL.%s %s, not %s: use configs/presets/%s.yaml, unless you are comparing",
                *(file.path, key, recorded, configured[key], preset),
            )
    for component in ("sam2", "beit3"):
        trained = json.loads(file.metadata.get(component, "null"))
        if trained and component in sources and trained["fingerprint"] != sources[component].fingerprint:
            logger.warning(
                "%s was trained with other %s weights (%s) than those of %s",
                *(file.path, component, trained["file"], sources[component].file),
            )
