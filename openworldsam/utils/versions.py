"""Versions of the software behind a result."""

from __future__ import annotations

import platform
from importlib import metadata

import openworldsam

PACKAGES = ("torch", "torchvision", "numpy", "detectron2", "sam2", "torchscale", "pycocotools")
"""Packages that can change results, by their import names."""


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and `PACKAGES`; None for one installed without metadata."""
    installed = metadata.packages_distributions()
    found = {name: metadata.version(installed[name][0]) if name in installed else None for name in PACKAGES}
    return {"python": platform.python_version(), "openworldsam": openworldsam.__version__, **found}
