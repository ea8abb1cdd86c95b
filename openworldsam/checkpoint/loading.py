"""Loads weight files into a model: strict, with advice when something does not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from openworldsam.checkpoint.layouts import Source, WeightFile, read_weights
from openworldsam.config import config_value
from openworldsam.inference import InferenceOptions
from openworldsam.modeling.components import (
    ADAPTER,
    SAM2_VIDEO,
    SCORE_HEAD,
    TIE_BREAKERS,
    Component,
    StateDict,
    renamed,
)
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.utils.device import keep_freed_memory
from openworldsam.utils.text import shortened

logger = logging.getLogger(__name__)

TRAINED_WITH = (
    "ADAPTER.FUSION",
    "ADAPTER.INTERACTION",
    "ADAPTER.KEY_POSITIONS",
    "PROMPT_ENCODER.NAME",
    "PROMPT_ENCODER.USE_IMAGE",
)
"""Keys below MODEL that change what the adapter learns but not the shape of its tensors; its file records them."""


def load_weights(model: OpenWorldSAM, cfg: CfgNode, *, need_adapter: bool = True) -> dict[str, Source]:
    """Fill a model from MODEL.WEIGHTS, MODEL.SAM2.WEIGHTS and MODEL.PROMPT_ENCODER.WEIGHTS.

    If MODEL.WEIGHTS is a full checkpoint, the other files are not read. An error leaves the frozen modules empty.

    A model with more tie-breakers than its adapter's file gets the file's, then others drawn from their distribution
    (`grow_tie_breakers`), which a warning and the source's note say.

    A model whose files hold no score head loses it, unless its scores come from it. The thresholds that a head's file
    stores become the model's.

    Args:
        need_adapter: False (at the start of a training) keeps the initial adapter and score head if no file holds them,
            and accepts an adapter with more tie-breakers than the model, which takes the first ones.

    Returns:
        the source of each component, by name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no file holds a component, or it does not fit the model.
    """
    device = next(model.adapter.parameters()).device
    components = model.components
    if cfg.MODEL.SCORE_HEAD.WEIGHTS and not cfg.MODEL.SCORE_HEAD.HIDDEN:
        raise ValueError("MODEL.SCORE_HEAD.WEIGHTS needs MODEL.SCORE_HEAD.HIDDEN, the width of the head in that file")
    for component in components.values():
        for module in map(model.get_submodule, component.modules):
            if _is_frozen(module):
                _release(module)
    files = component_files(cfg, components, need_adapter=need_adapter or not model.train_adapter)
    for name, file in files.items():
        load_component(model, name, file, fewer_tie_breakers=not need_adapter)
        logger.info("%s weights from %s (%s)", name, file.path, file.layout_of(name))
    sources = {name: file.source(name) for name, file in files.items()}
    if ADAPTER.name in files and (drawn := _drawn_tie_breakers(model, files[ADAPTER.name])):
        logger.warning("%s: %s", files[ADAPTER.name].path, drawn)
        note = "; ".join(filter(None, (sources[ADAPTER.name].note, drawn)))
        sources[ADAPTER.name] = replace(sources[ADAPTER.name], note=note)
    if SCORE_HEAD.name in files:
        model.match_thresholds = files[SCORE_HEAD.name].thresholds
        model.inference = InferenceOptions.from_config(cfg, stored=model.match_thresholds)
    elif model.score_head and need_adapter:
        _drop_score_head(model, cfg)
    model.store_frozen_weights()
    model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    trained = [files[name] for name in (ADAPTER.name, SCORE_HEAD.name) if name in files]
    for file in {file.path: file for file in trained}.values():
        _warn_of_other_training(file, sources, cfg)
    return sources


def score_rule(model: OpenWorldSAM, cfg: CfgNode) -> dict[str, Any]:
    """The rule of a model's scores, their threshold, and where that comes from, as results say it."""
    rule, threshold = model.inference.score, model.inference.score_threshold
    origin = "stored with the weights" if rule in model.match_thresholds else "not calibrated"
    if rule == "iou" or cfg.MODEL.INFERENCE.MATCH_THRESHOLD:
        origin = "config"
    return {"rule": rule, "threshold": threshold, "origin": origin}


def _drawn_tie_breakers(model: OpenWorldSAM, file: WeightFile) -> str:
    """Say how many of a model's tie-breakers are not from the adapter's file; empty if all are."""
    learned, wanted = len(file.components[ADAPTER.name].get(TIE_BREAKERS, ())), model.adapter.num_queries
    return f"{wanted - learned} of {wanted} tie-breakers are drawn, not learned" if 0 < learned < wanted else ""


def _drop_score_head(model: OpenWorldSAM, cfg: CfgNode) -> None:
    """Do without the score head that no file holds."""
    advice = "train one on this adapter (docs/score.md), or set MODEL.SCORE_HEAD.WEIGHTS"
    if model.inference.score != "iou":
        raise ValueError(
            f"{cfg.MODEL.WEIGHTS} has no score head, so MODEL.INFERENCE.SCORE {model.inference.score} cannot be "
            f"used: set it to iou; or {advice}"
        )
    model.score_head = None
    logger.warning("%s has no score head, so there is no match score: %s", cfg.MODEL.WEIGHTS, advice)


def component_files(
    cfg: CfgNode, components: Mapping[str, Component], *, need_adapter: bool = True
) -> dict[str, WeightFile]:
    """Read the configured weight files: MODEL.WEIGHTS may hold every component, the other keys one each.

    MODEL.WEIGHTS comes first, except for a score head, of which an adapter may get another one.

    Args:
        components: to look for, by name, from `components_with`.
        need_adapter: False if there may be no adapter yet.

    Returns:
        the file of each component.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, holds no component that its key is for, or no file holds a component.
    """
    found: dict[str, WeightFile] = {}
    read: dict[str, WeightFile] = {}
    single = {component.key: [name] for name, component in components.items() if component != ADAPTER}
    together = [name for name in components if name != SCORE_HEAD.name or not config_value(cfg, SCORE_HEAD.key)]
    for key, names in {ADAPTER.key: together, **single}.items():
        path = config_value(cfg, key)
        if not path or found.keys() >= set(names):
            continue
        if path not in read:
            read[path] = read_weights(path)
        file = read[path]
        if not set(names) & file.components.keys():
            raise ValueError(f"{path} ({file.layout}) holds no {' or '.join(names)} weights; {key} needs them")
        for name in names:
            if name in file.components:
                found.setdefault(name, file)
    needed = [c for c in components.values() if c != SCORE_HEAD and (c != ADAPTER or need_adapter)]
    missing = [c for c in needed if c.name not in found]
    if missing and not found:
        raise ValueError(
            "no weights: set MODEL.WEIGHTS to a full checkpoint, which holds everything (openworldsam download "
            "openworldsam_coco), or give adapter and encoders one by one, see weights/README.md"
        )
    if missing:
        given = ", ".join(f"{name} from {found[name].path}" for name in components if name in found)
        wanted = ", ".join(f"{component.key} {component.hint}" for component in missing)
        raise ValueError(f"no weights for {' and '.join(c.name for c in missing)} (only {given}): set {wanted}")
    return found


def find_source(component: Component, cfg: CfgNode) -> Source | None:
    """Find a component's source in the configured files; None if the files are absent or do not hold it."""
    paths = (cfg.MODEL.WEIGHTS, config_value(cfg, component.key))
    for path in dict.fromkeys(path for path in paths if path and Path(path).exists()):
        file = read_weights(path)
        if component.name in file.components:
            return file.source(component.name)
    return None


def load_component(model: OpenWorldSAM, name: str, file: WeightFile, *, fewer_tie_breakers: bool = False) -> None:
    """Fill one component's modules, strictly: no tensor may be missing, unexpected or of another shape.

    Frozen tensors stay in the memory-mapped file, so that a 3.6 GB checkpoint takes its memory once.

    Args:
        name: of the component: "sam2", "adapter" or the prompt encoder's.
        fewer_tie_breakers: accept a file with more tie-breakers than the model, which takes the first ones.

    Raises:
        ValueError: a missing, unexpected or wrongly shaped tensor; says which and what to do.
    """
    component = model.components[name]
    public = {n: t for n, t in file.components[name].items() if not n.startswith(SAM2_VIDEO)}
    state = {
        renamed(n, component.prefixes) or n: tensor.float() if tensor.is_floating_point() else tensor
        for n, tensor in public.items()
    }
    expected = {
        f"{module}.{n}": tensor
        for module in component.modules
        for n, tensor in model.get_submodule(module).state_dict().items()
    }
    component.fit(state, expected)
    wanted = len(expected.get(TIE_BREAKERS, ()))
    if fewer_tie_breakers and TIE_BREAKERS in state and 0 < wanted < len(state[TIE_BREAKERS]):
        logger.info("the first %d of the %d tie-breakers of %s", wanted, len(state[TIE_BREAKERS]), file.path)
        state[TIE_BREAKERS] = state[TIE_BREAKERS][:wanted]
    if problems := misfits(state, expected):
        raise ValueError(
            f"{file.path} ({file.layout_of(name)}) does not fit the configured {name}: {problems}. "
            f"{component.advice(public)}"
        )
    for module in component.modules:
        target = model.get_submodule(module)
        tensors = {n.removeprefix(f"{module}."): t for n, t in state.items() if n.startswith(f"{module}.")}
        on_meta = any(p.is_meta for p in target.parameters())  # there is no memory to copy to
        target.load_state_dict(tensors, assign=_is_frozen(target) or on_meta)


def misfits(state: StateDict, expected: StateDict) -> str:
    """List tensors that are missing, unexpected, or of another shape or kind of numbers; empty if all fit."""
    problems = [
        *(f"missing {name}" for name in expected.keys() - state.keys()),
        *(f"unexpected {name}" for name in state.keys() - expected.keys()),
        *(
            f"{name} is {tuple(state[name].shape)}, in the model {tuple(expected[name].shape)}"
            for name in expected.keys() & state.keys()
            if state[name].shape != expected[name].shape
        ),
        *(
            f"{name} is {state[name].dtype}, in the model {expected[name].dtype}".replace("torch.", "")
            for name in expected.keys() & state.keys()
            if state[name].is_floating_point() != expected[name].is_floating_point()
        ),
    ]
    listed = "; ".join(shortened(problem, 200) for problem in sorted(problems)[:4])
    return listed + (f"; {len(problems) - 4} more" if len(problems) > 4 else "")


def _release(module: nn.Module) -> None:
    """Free the memory of tensors that a file will replace; non-persistent buffers, which are in no file, stay."""
    persistent = module.state_dict().keys()
    kept = {name: buffer for name, buffer in module.named_buffers() if name not in persistent}
    module.to("meta")
    for name, buffer in kept.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, buffer)


def _is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def training_record(cfg: CfgNode) -> dict[str, str]:
    """Training settings that an adapter's tensors do not show, for the metadata of its file."""
    return {"preset": cfg.PRESET, **{key: str(config_value(cfg.MODEL, key)) for key in TRAINED_WITH}}


def provenance(cfg: CfgNode, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Origin of a result: the preset, and the sources of the weights by component."""
    return {"preset": cfg.PRESET, "weights": {component: asdict(source) for component, source in sources.items()}}


def _warn_of_other_training(file: WeightFile, sources: dict[str, Source], cfg: CfgNode) -> None:
    """Warn if an adapter or score head is used in another way than it was trained: an experiment, or a mistake."""
    configured = training_record(cfg)
    for key in TRAINED_WITH:
        recorded = file.metadata.get(key, configured[key])
        if recorded != configured[key]:
            preset = file.metadata.get("preset", "its preset")
            logger.warning(
                "%s was trained with MODEL.%s %s, not %s: use configs/presets/%s.yaml, unless you are comparing",
                *(file.path, key, recorded, configured[key], preset),
            )
    for component, source in sources.items():
        if (trained := file.recorded(component)) and trained.fingerprint != source.fingerprint:
            logger.warning(
                "%s was trained with other %s weights (%s) than those of %s",
                *(file.path, component, trained.file, source.file),
            )
