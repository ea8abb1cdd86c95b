"""Config files, and where they, weights and data are looked for; imports neither torch nor Detectron2.

Packages are imported by the functions that read files, as weights/download.py runs where none is installed.

A config is a YAML file, a folder that `save_pretrained` wrote, or the name of a config that ships: "shapes",
"released", "coco/openworldsam". A relative path of weights is looked for beside the file that states it, in the
working directory and in the weights folder (`weights_folder`), in this order.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openworldsam.utils.text import brief, shortened

SAVED = "config.json"
"""The config of a folder that `save_pretrained` wrote."""
WEIGHT_KEYS = ("WEIGHTS", "TOKENIZER", "INIT_WEIGHTS")
"""Last names of the keys whose values are paths of weights."""
TOKENIZER = "weights/beit3.spm"
"""Default of MODEL.PROMPT_ENCODER.TOKENIZER."""
MAX_BASES = 50
"""Most files that the `_BASE_` entries of a config file lead to."""


def shipped(name: str) -> Path:
    """The folder "configs" or "weights" that comes with the code: in an installed package, else in the repository."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


def weights_folder() -> Path:
    """The folder of downloaded weights: $OPENWORLDSAM_WEIGHTS, by default openworldsam/weights in the user's cache."""
    if given := os.environ.get("OPENWORLDSAM_WEIGHTS"):
        return Path(os.path.expanduser(given))  # unlike Path.expanduser, without an error where there is no such home
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "openworldsam", "weights")


def dataset_root() -> Path:
    """Return the folder of all datasets: $DETECTRON2_DATASETS, or `datasets` in the current folder."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def find_weights(path: str) -> str:
    """The path of a weight file or folder: itself if it exists, else where it lies in the weights folder, if it does.

    There "weights/model_final.pth", as the docs write it, is model_final.pth.
    """
    inside = weights_folder() / path.removeprefix("weights/")
    return str(inside) if path and not os.path.lexists(path) and inside.exists() else path


def looked_for(path: str | Path) -> str:
    """List the places where a missing weight file was looked for, as the end of a message."""
    if os.path.isabs(path):
        return ""
    return f" beside the config, in the working directory or in {weights_folder()} ($OPENWORLDSAM_WEIGHTS)"


def config_names() -> list[str]:
    """The names of all configs that ship, such as "coco/openworldsam"; those of presets without their folder."""
    folder = shipped("configs")
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name.removeprefix("presets/") for name in names)


def find_config(config: str | Path) -> Path:
    """Find a config: a YAML file, a folder that `save_pretrained` wrote, or one that ships, by name.

    A name is the path below configs/, with or without ".yaml"; of a folder with an openworldsam.yaml, and of the
    presets, the short form does.

    Raises:
        FileNotFoundError: there is none; suggests the nearest name.
    """
    path = Path(config)
    if os.path.lexists(path) and (not path.is_dir() or os.path.lexists(path / SAVED)):
        return path
    folder, name = shipped("configs"), path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    for place in (f"{name}.yaml", f"presets/{name}.yaml", f"{name}/openworldsam.yaml"):
        if (found := folder / place).is_file():
            return _from_here(found)
    if path.is_dir():
        raise FileNotFoundError(f"{path} is no folder that save_pretrained wrote to the end: it has no {SAVED}")
    near = difflib.get_close_matches(name, config_names(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise FileNotFoundError(f"config {path} not found: no file, no saved model and no config that ships{hint}")


def config_contents(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the content of each `_BASE_` of a config file, and then its own, which overrides them.

    A `_BASE_` is a config or a list of them, relative to the file or by name. Relative paths of weights that exist
    beside the file are returned as they are reached from the working directory.

    Args:
        above: files whose `_BASE_` led here.

    Raises:
        FileNotFoundError: a `_BASE_` is missing.
        ValueError: a file is no config, its `_BASE_` lead in a circle or to more than `MAX_BASES` files.
    """
    from openworldsam.utils.safe_yaml import read_yaml

    if path.is_dir() and above:
        raise ValueError(f"{above[-1]}: _BASE_ {path} is a folder, where a file is needed")
    content = _saved_config(path) if path.is_dir() else read_yaml(path, "", "is not a config file")
    if not isinstance(content, dict):
        found = "nothing" if content is None else brief(content)
        raise ValueError(f"{path} is not a config file: it has no lines `KEY: value` but {found}")
    if path.resolve() in above or len(above) > MAX_BASES:
        raise ValueError(f"{above[-1]}: _BASE_ leads in a circle to {path}, or to more than {MAX_BASES} files")
    bases = content.pop("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "://" in base:
            raise ValueError(f"{path}: _BASE_ is a config on this machine, or a list of them, got {brief(base)}")
        yield from config_contents(_find_base(path, base), (*above, path.resolve()))
    _locate_beside(content, path if path.is_dir() else path.parent)
    yield path / SAVED if path.is_dir() else path, content


def _find_base(path: Path, base: str) -> Path:
    beside = path.parent / os.path.expanduser(base)
    if os.path.lexists(beside):
        return beside
    try:
        return find_config(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{beside} not found. {path} names it; and {error}") from None


def _saved_config(folder: Path) -> dict[str, Any]:
    """Read the config of a folder that `save_pretrained` wrote, and compare its files with their checksums."""
    from openworldsam.utils.files import checksum, read_json

    path = folder / SAVED
    try:
        content = read_json(path)
        config, crc32 = dict(content["config"]), dict(content["crc32"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or not what save_pretrained wrote ({shortened(str(error))})") from None
    named = {str(value) for key, value in flat(config).items() if key.split(".")[-1] in WEIGHT_KEYS and value}
    if {name.split("/")[0] for name in crc32} != named:
        raise ValueError(f"{path} is damaged, or not what save_pretrained wrote (its files: {brief(list(crc32))})")
    for name, recorded in crc32.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; {path} needs it")
        if checksum(folder / name) != recorded:
            raise ValueError(f"{folder / name} is damaged or of another model: its checksum is not that of {path}")
    return config


def flat(section: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The values of a nested config by dotted key."""
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return values


def _locate_beside(section: dict[str, Any], folder: Path) -> None:
    """Replace the paths of weights that exist beside a config file, in place."""
    for key, value in section.items():
        if isinstance(value, dict):
            _locate_beside(value, folder)
        elif key in WEIGHT_KEYS and isinstance(value, str) and value and (folder / value).exists():
            section[key] = str(_from_here(folder / value))


def _from_here(path: Path) -> Path:
    """A path without `..`, relative to the working directory if it lies in it."""
    path, here = Path(os.path.abspath(path)), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
