"""Read images, upright. Every command opens its image files here, in `open_image`.

Images, label images and bitmasks are turned by one rule, whoever reads them: by EXIF's orientation, or XMP's where EXIF
has none (`upright`).

Shapes: H, W image size. Images are RGB uint8, channels first
([3, H, W]) as tensors and channels last ([H, W, 3]) as arrays.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from openworldsam.utils.files import regular_file

ImageLike = Any  # a path, a PIL image, a uint8 array or a tensor; the union would need every PIL subclass

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
"""The formats that are opened, with their suffixes; the content decides. Of several images in a file the first is read.
Pillow knows more formats, some of which start other programs (EPS: Ghostscript)."""
IMAGE_SUFFIXES = tuple(chain(*FORMATS.values()))
_OTHERS = {
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "AVIF": rb"....ftypavi",
    "a video": rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
    "a PDF": rb"%PDF",
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "SVG": rb"\s*<(\?xml|svg)",
    "JPEG 2000": rb"\0\0\0\x0cjP|\xffO\xffQ",
    "JPEG XL": rb"\0\0\0\x0cJXL|\xff\x0a",
    "DDS": rb"DDS ",
    "PSD": rb"8BPS",
    "PPM": rb"P[1-7]\s",
}
"""First bytes of files that people take for images, as regular expressions."""
MAX_PIXELS = 64_000_000
"""Default of DATALOADER.MAX_PIXELS: pixels of an image or mask beyond which it is refused before it is decoded."""
_limit = MAX_PIXELS

_ORIENTATION = 0x0112
"""EXIF's tag."""
_XMP_ORIENTATION = rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([0-9])"""
"""An attribute in quotes of either kind, or an element."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpositions that set an image of each EXIF orientation upright."""


def limit_pixels(count: int) -> None:
    """Set how many pixels an image or mask may have, in this process and those it forks."""
    global _limit
    if count < 1:
        raise ValueError(f"DATALOADER.MAX_PIXELS is at least 1, got {count}")
    _limit = count
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, count)  # else Pillow's own limit comes first


def check_area(height: int, width: int, name: object) -> None:
    """Raise ValueError if an image or mask has more pixels than allowed."""
    if height * width > _limit:
        raise ValueError(f"{name} has {width} x {height} pixels; {_too_many()}")


def _too_many() -> str:
    return f"the limit is {_limit:,} (DATALOADER.MAX_PIXELS): scale it down, or raise the limit"


class _Jpeg(JpegImageFile):
    """A JPEG of whose EXIF nothing is decoded: an odd resolution makes Pillow refuse a good image."""

    def _read_dpi_from_exif(self) -> None:
        pass


class _Tiff(TiffImageFile):
    """A TIFF whose odd tags harm nothing: Pillow decodes them all before it turns the image."""

    def load_end(self) -> None:
        try:
            super().load_end()
        except Exception:  # of whatever class; nothing has been turned
            if (turn := _TURNS.get(self.tag_v2.get(_ORIENTATION) or 1)) is not None:
                self.im = self.im.transpose(turn)
            self._size = self.im.size


@contextmanager
def open_image(path: str | Path, kind: str = "image") -> Iterator[ImageFile]:
    """Open an image file of one of `FORMATS`; its pixels are decoded when they are asked for.

    The block should only decode: whatever is raised there counts as damage of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, device or pipe; a file of another format, with more pixels than allowed, or damaged.
    """
    try:
        file_path = regular_file(path)  # a pipe would be waited for
    except FileNotFoundError:
        raise FileNotFoundError(f"{kind} {path} not found") from None
    try:
        with file_path.open("rb") as file:
            image = _identify(file)
            width, height = image.size
            if height * width <= _limit:
                yield image
                return
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has too many pixels; {_too_many()}") from error
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{path} is not a readable {kind}: {reason}") from error
    check_area(height, width, path)


def _identify(file: IO[bytes]) -> ImageFile:
    """Read the header of a file of one of `FORMATS`; raises almost anything for others."""
    head = file.read(64)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they name no file; what matters is an error
            if head.startswith(b"\xff\xd8\xff"):
                return _Jpeg(file)
            if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
                return _Tiff(file)
            return Image.open(file, formats=[*FORMATS])
    except Image.UnidentifiedImageError:
        other = next((f"it is {name}" for name, start in _OTHERS.items() if re.match(start, head, re.DOTALL)), "")
        wanted = ", ".join(FORMATS)
        advice = f"{other}; convert it to one of {wanted}" if other else f"it is damaged, or none of {wanted}"
        raise ValueError(advice) from None


def read_image(source: ImageLike) -> np.ndarray:
    """Return an image as RGB, upright, alpha dropped, 16 bits reduced to 8.

    Args:
        source: path of an image file; PIL image; uint8 array [H, W], [H, W, 3] or [H, W, 4] (RGB order); or tensor
            [1, H, W], [3, H, W] or [4, H, W] as torchvision makes them, uint8 or floating-point from 0 to 1.

    Returns:
        uint8 [H, W, 3].

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: not an image as `open_image` opens it, floating-point pixels, or an array of another type or shape.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    if isinstance(source, Tensor):
        return _check_array(_tensor_pixels(source))
    if isinstance(source, Image.Image):
        check_area(source.height, source.width, "the PIL image")
        try:
            return _to_rgb(upright(source), "the PIL image")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"the PIL image is not readable: {error}") from error
    if not isinstance(source, (str, Path)):
        raise ValueError(f"an image is a path, a PIL image, an array or a tensor, got {type(source).__name__}")
    with open_image(source) as image:
        turned = upright(image)
    return _to_rgb(turned, str(source))


def _tensor_pixels(tensor: Tensor) -> np.ndarray:
    """Convert an image tensor, see `read_image`, to an array [H, W, 3] or [H, W, 4]."""
    if tensor.ndim != 3 or len(tensor) not in (1, 3, 4) or 0 in tensor.shape:
        raise ValueError(
            f"an image tensor is [1, H, W], [3, H, W] or [4, H, W] and not empty, got {list(tensor.shape)}"
        )
    pixels = tensor.detach().cpu()
    if pixels.is_floating_point():
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("a floating-point image tensor has values from 0 to 1; undo its normalization first")
        pixels = (255 * pixels.float()).round().byte()
    return pixels.expand(max(3, len(pixels)), -1, -1).permute(1, 2, 0).numpy()


def _check_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise ValueError(f"an image array is uint8 with values 0..255, got {array.dtype}; convert it first")
    if array.ndim < 2 or array.shape[2:] not in ((), (3,), (4,)) or 0 in array.shape:
        raise ValueError(f"an image array is [H, W], [H, W, 3] or [H, W, 4] and not empty, got {array.shape}")
    check_area(array.shape[0], array.shape[1], "the array")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


def _to_rgb(turned: Image.Image, name: str) -> np.ndarray:
    if 0 in turned.size:
        raise ValueError(f"{name} is empty: {turned.size[0]} x {turned.size[1]} pixels")
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
    turn = xmp = None
    if isinstance(image, TiffImageFile):
        image.filename = ""  # else Pillow maps some into memory, with H and W swapped
        # Pillow turns TIFFs itself as EXIF says, and as only some forms of XMP do
        turn, xmp = _turn(image), image.info.pop("xmp", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.load()
    if not isinstance(image, TiffImageFile):
        turn = _turn(image)
    elif turn is not None:
        image.info["xmp"] = xmp
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the (H, W) that an image just opened has once it is `upright`.

    Its pixels are only decoded where Pillow needs this to find the orientation.
    """
    if isinstance(image, PngImageFile) and _has_late_metadata(image):
        image.load()
    sideways = _turn(image) in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
    width, height = image.size
    return (width, height) if sideways else (height, width)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the operation that sets an image upright, None if there is nothing to do, or Pillow does it."""
    if isinstance(image, TiffImageFile):
        orientation = 1 if _ORIENTATION in image.tag_v2 else None
    else:
        orientation = _exif_orientation(image)
    if orientation is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        found = re.search(_XMP_ORIENTATION, xmp.encode() if isinstance(xmp, str) else bytes(xmp))
        orientation = int(found[1]) if found else 1
    return _TURNS.get(orientation)


def _exif_orientation(image: Image.Image) -> int | None:
    """Find the orientation in an image's EXIF, None if it has none; other tags, maybe damaged, are not read."""
    try:
        profile = image.info.get("Raw profile type exif", "")  # as ImageMagick writes it
        exif = image.info.get("exif") or bytes.fromhex("".join(profile.split("\n")[3:]))
        tiff = exif.removeprefix(b"Exif\0\0")
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, place)
            if tag == _ORIENTATION:
                return int(struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], tiff, place + 8)[0])
    except (KeyError, ValueError, TypeError, AttributeError, struct.error):
        pass  # damaged metadata are no damage to the image
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
