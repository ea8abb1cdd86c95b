"""The header of a cache: the weights, settings and number format that made it, and whether they fit a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from openworldsam.config import config_value
from openworldsam.modeling.prompt_encoders import prompt_encoder_class
from openworldsam.utils.device import DTYPES
from openworldsam.utils.files import checksum, read_any_json

VERSION = 3
HEADER = "header.json"
IMAGE_FEATURES = {"none": (), "all": ("image_embed", "high_res_0", "high_res_1")}
"""Tensors of an image that a cache holds beside its prompt embeddings."""
ENCODER = "MODEL.PROMPT_ENCODER.NAME"
WORDS = "word embeddings"
"""Setting of a cache whose prompt embeddings end with those of the words alone, which a score head reads."""
IMAGE_SETTINGS = ("MODEL.SAM2.IMAGE_SIZE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
"""Config keys that change SAM2's output without changing its weights."""


@dataclass(frozen=True)
class CacheHeader:
    """Origin of a cache's content.

    fingerprints: of the encoders' weights, by component, and of the tokenizer.
    settings: values of the config keys that change the content.
    image_features: "none" or "all".
    dtype: number format on the disk, "fp32", "bf16" or "fp16".
    precision: arithmetic of the encoders, MODEL.PRECISION.
    """

    fingerprints: dict[str, str]
    settings: dict[str, Any]
    image_features: str
    dtype: str
    precision: str
    version: int = VERSION

    @classmethod
    def from_config(cls, cfg: CfgNode, fingerprints: Mapping[str, str], image_features: str, dtype: str) -> CacheHeader:
        """The header of the cache that a config makes.

        fingerprints: `Source.fingerprint` by component, from `load_weights`, and the tokenizer's.

        Raises:
            ValueError: an unknown choice, or a config under which features change from visit to visit.
        """
        for what, choices, got in (("image features", IMAGE_FEATURES, image_features), ("dtype", DTYPES, dtype)):
            if got not in choices:
                raise ValueError(f"{what} of a feature cache are one of {', '.join(choices)}, got {got!r}")
        for key in ("INPUT.FLIP", "INPUT.LARGE_SCALE_JITTER", "MODEL.PROMPT_ENCODER.TRAINABLE"):
            if config_value(cfg, key):
                raise ValueError(f"{key} is on: features then change from visit to visit; switch it or the cache off")
        encoder = prompt_encoder_class(cfg)
        settings, made_by = (ENCODER, *encoder.settings), ["tokenizer"]
        if encoder.component:
            made_by.append(encoder.component.name)
        if image_features != "none":
            settings += IMAGE_SETTINGS
            made_by.append("sam2")
        values = {key: config_value(cfg, key) for key in settings}
        if cfg.MODEL.SCORE_HEAD.HIDDEN:
            values[WORDS] = True
        return cls(
            {name: fingerprints[name] for name in sorted(made_by) if name in fingerprints},
            {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
            image_features,
            dtype,
            cfg.MODEL.PRECISION,
        )

    def differences(self, other: CacheHeader) -> list[str]:
        """Differing values, as "KEY is OURS, not THEIRS"; fingerprints that only one header has are ignored."""
        shared = self.fingerprints.keys() & other.fingerprints.keys()
        ours, theirs = (
            {
                **header.settings,
                **{f"fingerprint of the {name}": header.fingerprints[name] for name in shared},
                **{key: getattr(header, key) for key in ("image_features", "dtype", "precision")},
            }
            for header in (self, other)
        )
        return [
            f"{key} is {ours.get(key)}, not {theirs.get(key)}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]


def tokenizer_fingerprint(cfg: CfgNode) -> dict[str, str]:
    """The tokenizer's fingerprint under its name; empty if its files are absent: training from a cache reads none."""
    encoder = prompt_encoder_class(cfg)
    files = encoder.tokenizer_files(Path(cfg.MODEL.PROMPT_ENCODER.TOKENIZER)) if encoder.tokenizer_name else []
    return {"tokenizer": f"{checksum(*files):08x}"} if files and all(file.is_file() for file in files) else {}


def read_header(folder: str | Path) -> CacheHeader:
    """Read the header of the cache in a folder.

    Raises:
        FileNotFoundError: the folder has no cache.
        ValueError: the header is damaged, or the format has another version.
    """
    path, again = Path(folder) / HEADER, "make the cache again in another folder"
    try:
        content = read_any_json(path)
        version = content.get("version", VERSION)
        header = CacheHeader(**content) if version == VERSION else None
        if header and not (
            header.image_features in IMAGE_FEATURES
            and header.dtype in DTYPES
            and isinstance(header.precision, str)
            and isinstance(header.settings.get(ENCODER), str)
            and all(isinstance(fingerprint, str) for fingerprint in header.fingerprints.values())
            and (header.image_features == "none" or "sam2" in header.fingerprints)
        ):
            raise ValueError("a field is missing or of another type")
    except FileNotFoundError:
        hint = "openworldsam cache makes one"
        raise FileNotFoundError(f"{folder} holds no feature cache (no {HEADER}); {hint}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {again}") from None
    if header is None:
        age = "an older" if isinstance(version, int) and version < VERSION else "another"
        raise ValueError(f"{folder} is a cache of {age} format ({version}, this code reads {VERSION}); {again}")
    return header
