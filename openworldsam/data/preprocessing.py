"""Read images.

Shapes: H, W image size. Images are RGB uint8, channels first
([3, H, W]) as tensors and channels last ([H, W, 3]) as arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ImageLike = Any  # a path, a PIL image or a uint8 array; the union would need every PIL subclass


def read_image(source: ImageLike) -> np.ndarray:
    """Return an image as RGB, upright (EXIF rotation applied), alpha dropped, 16 bits reduced to 8.

    Args:
        source: path of an image file, PIL image, or uint8 array [H, W], [H, W, 3] or [H, W, 4] (RGB order).

    Returns:
        uint8 [H, W, 3].

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: not an image, a truncated one, or an array of another type or shape.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    if not isinstance(source, (str, Path, Image.Image)):
        raise ValueError(f"an image is a path, a PIL image or a uint8 array, got {type(source).__name__}")
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source, "the PIL image")
        with Image.open(source) as image:
            return _to_rgb(image, str(source))
    except FileNotFoundError:
        raise FileNotFoundError(f"image {source} not found") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{source}: {error}; scale the image down first") from error
    except (OSError, SyntaxError) as error:  # PIL raises both for damaged files
        raise ValueError(f"{source} is not a readable image: {error}") from error


def _check_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise ValueError(f"an image array is uint8 with values 0..255, got {array.dtype}; convert it first")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise ValueError(f"an image array is [H, W], [H, W, 3] or [H, W, 4] and not empty, got {array.shape}")
    return np.ascontiguousarray(array[:, :, :3])


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if 0 in image.size:
        raise ValueError(f"{name} is empty: {image.size[0]} x {image.size[1]} pixels")
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError(f"{name} holds floating-point pixels; convert it to 8 bits first")
    if upright.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit greys at 255 instead of scaling them; "I" may hold 8 or 16 bits
        grey = np.asarray(upright).astype(np.float64)
        is_8_bit = upright.mode == "I" and grey.max() <= 255
        return _check_array(np.clip(np.rint(grey / (1 if is_8_bit else 257)), 0, 255).astype(np.uint8))
    if upright.mode == "P":
        upright = upright.convert("RGBA")  # Pillow warns of transparency in a palette otherwise
    return np.array(upright.convert("RGB"))


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
