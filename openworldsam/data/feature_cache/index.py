"""The index of a shard: its images, and checksums of the shard and of the index itself."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from openworldsam.utils.files import checksum, save_atomically

ImageId = int | str


class Picture(NamedTuple):
    """What tells a picture from another of the same name: its size in pixels and the CRC-32 of these."""

    height: int
    width: int
    crc32: int

    @classmethod
    def of(cls, pixels: Tensor) -> Picture:
        """Of an image, uint8 [3, H, W]."""
        _, height, width = pixels.shape
        return cls(height, width, zlib.crc32(pixels.contiguous().numpy().data))


class ImageEntry(NamedTuple):
    """An image in a shard.

    id, file: of its record, the file without its folder; prompts: in the order of their rows; features: whether the
    shard has its image features too.
    """

    id: ImageId
    file: str
    picture: Picture
    prompts: tuple[str, ...]
    features: bool


class Index(NamedTuple):
    """Size and CRC-32 of a shard, and its images in the order of their rows."""

    bytes: int
    crc32: int
    images: list[ImageEntry]

    @property
    def rows(self) -> int:
        """Prompts in the shard."""
        return sum(len(image.prompts) for image in self.images)


def write_index(shard: Path, images: list[ImageEntry]) -> None:
    """Write the index of a shard, which is complete then."""
    entries = [image._asdict() for image in images]
    content = {"bytes": shard.stat().st_size, "crc32": checksum(shard), "images": entries}
    text = json.dumps({"checksum": _checksum(content), **content})
    save_atomically(shard.with_suffix(".json"), lambda partial: partial.write_text(text))


def read_index(shard: Path) -> Index:
    """The index of a shard.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = json.loads(shard.with_suffix(".json").read_bytes())
        if content.pop("checksum") != _checksum(content):
            raise ValueError("another checksum than it says")
        return Index(content["bytes"], content["crc32"], [_entry(**image) for image in content["images"]])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(damage({shard: f"a damaged index ({error!r})"})) from None


def _entry(id: ImageId, file: str, picture: list[int], prompts: list[str], features: bool) -> ImageEntry:
    return ImageEntry(id, file, Picture(*picture), tuple(map(sys.intern, prompts)), features)


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())


def damage(problems: Mapping[Path, str]) -> str:
    """What is wrong with shards, all of one cache, and what to do about it."""
    found = "; ".join(f"{shard.name}: {what}" for shard, what in problems.items())
    indices = " ".join(str(shard.with_suffix(".json")) for shard in problems)
    return f"{next(iter(problems)).parent}: {found}. Delete {indices} and run tools/cache_features.py again"
