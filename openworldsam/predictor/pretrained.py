"""A folder that is a whole model, which `save_pretrained` of the predictor writes; it is used as a config.

config.json           the config without what belongs to this machine, and the CRC-32 of every other file; written last
NAME.safetensors      each component (adapter, sam2, the prompt encoder's) under its public names
tokenizer             a file or folder, under the name that the prompt encoder declares (beit3.spm)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode

import openworldsam
from openworldsam.checkpoint import Source, component_files, save_components
from openworldsam.config import config_value, load_config, merge_options, portable
from openworldsam.config_files import SAVED
from openworldsam.download import fetch, names_of
from openworldsam.modeling.components import SCORE_HEAD, Component, components_with
from openworldsam.modeling.prompt_encoders import prompt_encoder_class
from openworldsam.utils.files import checksum, output_file, save_atomically, save_json

TOKENIZER = "MODEL.PROMPT_ENCODER.TOKENIZER"


def save_folder(cfg: CfgNode, sources: Mapping[str, Source], folder: Path) -> None:
    """Write the folder of a model whose components came from `sources`; see `OpenWorldSAMPredictor.save_pretrained`."""
    encoder, names = prompt_encoder_class(cfg), _file_names(cfg)
    files = component_files(cfg, _components(cfg))
    for component, file in files.items():
        if file.source(component).fingerprint != sources[component].fingerprint:
            raise ValueError(f"{file.path} has changed since its {component} weights were loaded")
    tokenizer = Path(config_value(cfg, TOKENIZER))
    read = encoder.tokenizer_files(tokenizer) if names[TOKENIZER] else []
    copies = {folder / names[TOKENIZER] / path.relative_to(tokenizer): path.read_bytes() for path in read}
    folder.mkdir(parents=True, exist_ok=True)
    output_file(folder / SAVED).unlink(missing_ok=True)  # without it nothing loads until all is there
    written = [*save_components(files, folder).values(), *copies]
    for path, content in copies.items():
        save_atomically(path, partial(Path.write_bytes, data=content))
    kept = cfg.clone()
    kept.defrost()
    if SCORE_HEAD.name not in files:
        kept.MODEL.SCORE_HEAD.HIDDEN, kept.MODEL.CRITERION.SCORE_WEIGHT = 0, 0.0
        names.pop(SCORE_HEAD.key, None)
    merge_options(kept, [word for pair in names.items() for word in pair])
    saved = {
        "openworldsam": openworldsam.__version__,
        "config": portable(kept),
        "crc32": {path.relative_to(folder).as_posix(): checksum(path) for path in sorted(written)},
    }
    save_json(folder / SAVED, saved, indent=2)


def fetch_missing(config: str | Path) -> None:
    """Fetch the public weight files that a config names and that are not there; raises as `load_config` and `fetch`."""
    cfg = load_config(config)
    needed = [config_value(cfg, key) for key, name in _file_names(cfg).items() if name]
    fetch(names_of(file for file in needed if not os.path.exists(file)))


def _components(cfg: CfgNode) -> dict[str, Component]:
    return components_with(prompt_encoder_class(cfg), score_head=cfg.MODEL.SCORE_HEAD.HIDDEN > 0)


def _file_names(cfg: CfgNode) -> dict[str, str]:
    """The name in a folder of each config key's file; empty if the prompt encoder reads no such file."""
    encoder = prompt_encoder_class(cfg)
    weights = {component.key: f"{name}.safetensors" for name, component in _components(cfg).items()}
    return {"MODEL.PROMPT_ENCODER.WEIGHTS": "", **weights, TOKENIZER: encoder.tokenizer_name}
