"""Read images, upright.

Images, label images and bitmasks are turned by one rule, whoever reads them: by EXIF's orientation, or XMP's where EXIF
has none (`upright`).

Shapes: H, W image size. Images are RGB uint8, channels first
([3, H, W]) as tensors and channels last ([H, W, 3]) as arrays.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

ImageLike = Any  # a path, a PIL image or a uint8 array; the union would need every PIL subclass

_ORIENTATION = 0x0112
"""EXIF's tag."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets an image of each orientation upright."""


def read_image(source: ImageLike) -> np.ndarray:
    """Return an image as RGB, upright, alpha dropped, 16 bits reduced to 8.

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
    turned = upright(image)
    if turned.mode == "F":
        raise ValueError(f"{name} holds floating-point pixels; convert it to 8 bits first")
    if turned.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit greys at 255 instead of scaling them; "I" may hold 8 or 16 bits
        grey = np.asarray(turned).astype(np.float64)
        is_8_bit = turned.mode == "I" and grey.max() <= 255
        return _check_array(np.clip(np.rint(grey / (1 if is_8_bit else 257)), 0, 255).astype(np.uint8))
    if turned.mode == "P":
        turned = turned.convert("RGBA")  # Pillow warns of transparency in a palette otherwise
    return np.array(turned.convert("RGB"))


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its orientation says; raises as `load` does."""
    if isinstance(image, TiffImageFile):
        image.filename = ""  # else Pillow maps some into memory, with H and W swapped
    image.load()
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the (H, W) that an image just opened has once it is `upright`.

    Its pixels are only decoded where Pillow needs this to find the orientation.
    """
    if isinstance(image, PngImageFile) and _has_late_metadata(image):
        image.load()
    if isinstance(image, TiffImageFile) and "xmp" in image.info:
        image.load()
    sideways = _turn(image) in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
    width, height = image.size
    return (width, height) if sideways else (height, width)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the operation that sets an image upright, None if there is nothing to do."""
    if isinstance(image, TiffImageFile):  # Pillow turns these itself
        return None
    try:
        # the base class's method, as that of PNGs decodes the pixels. Of EXIF's tags this one alone is decoded
        return _TURNS.get(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged metadata raise almost anything, and are no damage to the image
        return None


def _has_late_metadata(image: PngImageFile) -> bool:
    """Return whether a PNG has EXIF or XMP after its pixels, where Pillow only finds them by decoding all."""
    if not (file := image.fp):
        return False
    place, late, pixels = file.tell(), False, False
    file.seek(8)
    while not late and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        pixels |= kind == b"IDAT"
        late = pixels and kind in (b"eXIf", b"iTXt", b"zTXt")
        file.seek(length + 4, 1)
    file.seek(place)
    return late


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
