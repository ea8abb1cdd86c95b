"""OpenWorldSAM: SAM2 segments what a text names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openworldsam.predictor import OpenWorldSAMPredictor, Prediction

__version__ = "0.1.0"
__all__ = ["OpenWorldSAMPredictor", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    # on first use: importing the package alone should not take the seconds that torch and Detectron2 do
    if name in ("OpenWorldSAMPredictor", "Prediction"):
        from openworldsam import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
