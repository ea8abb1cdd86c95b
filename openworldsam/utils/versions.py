"""Versions of the software behind a result."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from importlib import metadata

import openworldsam

PACKAGES = ("torch", "torchvision", "numpy", "detectron2", "sam2", "torchscale", "pycocotools")
"""Packages that can change results, by their import names."""
ENCODERS = ("transformers", "open_clip")
"""Packages of some prompt encoders, recorded where one of them is used."""


def versions() -> dict[str, str | None]:
    """Versions of Python, this package, `PACKAGES`, and those of `ENCODERS` in use; None for one without metadata."""
    names = [*PACKAGES, *(name for name in ENCODERS if name in sys.modules)]
    return {"python": platform.python_version(), "openworldsam": openworldsam.__version__, **installed(names)}


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """Versions of packages, by their import names; None for one that is missing or has no metadata."""
    distributions = metadata.packages_distributions()
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(distributions.get(name, [name])[0])  # Python 3.10 knows few distributions
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
