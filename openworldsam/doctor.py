"""The command `openworldsam doctor`: what is installed, what the machine has, and what each config still needs."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import openworldsam
from openworldsam.config_files import dataset_root, weights_folder
from openworldsam.download import names_of
from openworldsam.preflight import missing_weights
from openworldsam.utils.launch import print_error, say
from openworldsam.utils.versions import PACKAGES, installed

EXTRAS = {
    "gradio": "app",
    "transformers": "encoders",
    "open_clip": "encoders",
    "supervision": "supervision",
    "fiftyone": "fiftyone",
    "label_studio_ml": "label-studio",
}
"""Packages that only some commands, exports and encoders need, and the extra of this package that installs each."""

SUFFIXES = (".pth", ".pt", ".safetensors", ".spm", ".bin")
"""Endings of weight and tokenizer files."""


def run(args: argparse.Namespace) -> None:
    """Print the report; exits with 1 if a package or a weight file is missing."""
    say(*packages(), *machine(), *folders())
    complete = all(util.find_spec(name) for name in PACKAGES)
    for config in args.configs:
        try:
            missing = missing_weights(config)
        except (OSError, ValueError, KeyError) as error:
            print_error(error)
            complete = False
            continue
        say(f"{config}: {need(list(missing.values())) or 'its weights are here'}")
        complete = complete and not missing
    if not complete:
        sys.exit(1)


def packages() -> Iterator[str]:
    """Versions of the required packages; the optional ones that are not installed."""
    yield f"openworldsam {openworldsam.__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield "  " + ", ".join(f"{name} {version}" for name, version in installed(PACKAGES).items() if version)
    for name in PACKAGES:
        if not util.find_spec(name):
            yield f"  missing: {name}; README.md, Manual installation, has the commands"
    for name, extra in EXTRAS.items():
        if not util.find_spec(name):
            yield f"  not installed, needed by some commands only: {name} (pip install '.[{extra}]' in the repository)"


def machine() -> Iterator[str]:
    """Cores, memory and devices."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield f"{os.cpu_count()} cores, {memory / 1e9:.0f} GB of memory"
    if not util.find_spec("torch"):
        return
    import torch

    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}: {about.name}, {about.total_memory / 1e9:.0f} GB"
    if torch.backends.mps.is_available():
        yield "mps: the GPU of this Mac"
    elif not torch.cuda.is_available():
        yield "no GPU: everything runs on the CPU"


def folders() -> Iterator[str]:
    """The folders of weights and data."""
    weights, data = weights_folder(), dataset_root()
    files = sorted(path for path in weights.glob("*") if path.suffix in SUFFIXES and path.is_file())
    held = ", ".join(f"{path.name} {path.stat().st_size / 1e9:.2f} GB" for path in files) or "nothing"
    free = shutil.disk_usage(next(folder for folder in (weights, *weights.parents) if folder.exists())).free
    yield f"weights in {weights} ($OPENWORLDSAM_WEIGHTS): {held}; {free / 1e9:.0f} GB free"
    state = "`openworldsam check` lists what is there" if data.is_dir() else "no such folder yet"
    yield f"data in {data} ($DETECTRON2_DATASETS): {state}"


def need(files: list[str]) -> str:
    """Say which weight files are missing, and the command that fetches them; empty if none are."""
    names = names_of(files)
    fetch = f": openworldsam download {' '.join(names)}" if names else ""
    return f"missing {', '.join(Path(file).name for file in dict.fromkeys(files))}{fetch}" if files else ""
