"""OpenWorldSAM: SAM2 segments what a text names."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openworldsam.predictor.predictor import OpenWorldSAMPredictor, Prediction

# Detectron2 and torchscale cause it when they are imported; nobody who runs this can do anything about it
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

__version__ = "0.1.0"
__all__ = ["OpenWorldSAMPredictor", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    # on first use: importing the package alone should not take the seconds that torch and Detectron2 do
    if name in ("OpenWorldSAMPredictor", "Prediction"):
        from openworldsam import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
