"""A folder that is a whole model: `save_pretrained` and `from_pretrained` of the predictor.

config.json           the config as far as it changes results, and the CRC-32 of every other file; written last
adapter.safetensors   sam2.safetensors, beit3.safetensors: the components under their public names
beit3.spm             the tokenizer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

import openworldsam
from openworldsam.checkpoint import Source, component_files, save_components
from openworldsam.checkpoint.loading import MODULES
from openworldsam.config import add_openworldsam_config, merge_options
from openworldsam.utils.files import file_crc32, save_atomically

CONFIG = "config.json"
FILES = {
    "MODEL.WEIGHTS": "adapter.safetensors",
    "MODEL.SAM2.WEIGHTS": "sam2.safetensors",
    "MODEL.PROMPT_ENCODER.WEIGHTS": "beit3.safetensors",
    "MODEL.PROMPT_ENCODER.TOKENIZER": "beit3.spm",
}
"""The config key that names each file."""
MODEL_KEYS = (
    "WEIGHTS",
    "PRECISION",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "SAM2",
    "PROMPT_ENCODER",
    "ADAPTER",
    "MASK_DECODER",
    "INFERENCE",
)
"""What is kept of MODEL; DEVICE and COMPILE are the machine's, CRITERION is the training's."""


def save_folder(cfg: CfgNode, sources: Mapping[str, Source], folder: Path) -> None:
    """Write the folder; see `OpenWorldSAMPredictor.save_pretrained`.

    Args:
        cfg: of the model; names the weight files.
        sources: of its components when they were loaded.
        folder: where to.
    """
    if sources.keys() != MODULES.keys():
        name = cfg.MODEL.PROMPT_ENCODER.NAME
        raise ValueError(f"only a model with BEiT-3 is saved so; {name} brings weights of its own")
    files = component_files(cfg, list(MODULES))
    for component, file in files.items():
        if file.source(component).fingerprint != sources[component].fingerprint:
            raise ValueError(f"{file.path} has changed since its {component} weights were loaded")
    tokenizer = Path(cfg.MODEL.PROMPT_ENCODER.TOKENIZER).read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # without it nothing loads until all is there
    save_components(files, folder)
    save_atomically(folder / FILES["MODEL.PROMPT_ENCODER.TOKENIZER"], lambda partial: partial.write_bytes(tokenizer))
    content = {
        "openworldsam": openworldsam.__version__,
        "config": _kept(cfg),
        "crc32": {name: file_crc32(folder / name) for name in FILES.values()},
    }
    text = json.dumps(content, indent=2)
    save_atomically(folder / CONFIG, lambda partial: partial.write_text(text))


def folder_config(folder: Path) -> CfgNode:
    """The config of a folder whose files are all there and whole; see `OpenWorldSAMPredictor.from_pretrained`."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no folder that save_pretrained wrote to the end: it has no {CONFIG}")
    cfg = get_cfg()
    add_openworldsam_config(cfg)
    try:
        content = json.loads(path.read_text())
        crc32 = {name: content["crc32"][name] for name in FILES.values()}
        cfg.merge_from_other_cfg(CfgNode(content["config"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or not what save_pretrained wrote ({error})") from None
    for name, recorded in crc32.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; {path} needs it")
        if file_crc32(folder / name) != recorded:
            raise ValueError(f"{folder / name} is damaged or of another model: its checksum is not that of {path}")
    merge_options(cfg, [word for key, name in FILES.items() for word in (key, str(folder / name))])
    return cfg


def _kept(cfg: CfgNode) -> dict[str, Any]:
    """What a config says about results, with the folder's own names of files."""
    cfg = cfg.clone()
    cfg.defrost()
    merge_options(cfg, [word for pair in FILES.items() for word in pair])
    model = {key: cfg.MODEL[key] for key in MODEL_KEYS}
    return {"PRESET": cfg.PRESET, "INPUT": {"ANTIALIAS": cfg.INPUT.ANTIALIAS}, "MODEL": model}
