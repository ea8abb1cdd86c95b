"""Versions of the software behind a result."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import openworldsam

PACKAGES = ("torch", "torchvision", "numpy", "detectron2", "sam2", "torchscale", "pycocotools")
"""Packages that can change results, by their import names."""
ENCODERS = ("transformers", "open_clip")
"""Packages of some prompt encoders, recorded where one of them is used."""


def versions() -> dict[str, str | None]:
    """Versions of Python, this package, `PACKAGES`, and those of `ENCODERS` in use; None for one without metadata."""
    installed = metadata.packages_distributions()
    names = [*PACKAGES, *(name for name in ENCODERS if name in sys.modules)]
    found = {name: metadata.version(installed[name][0]) if name in installed else None for name in names}
    return {"python": platform.python_version(), "openworldsam": openworldsam.__version__, **found}
