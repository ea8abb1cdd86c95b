"""The index of a shard: its images, and checksums of the shard and of the index itself."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from openworldsam.data.records.coco_json import ImageId
from openworldsam.utils.files import checksum, read_any_json, save_json


class ImageStamp(NamedTuple):
    """Identifies an image's pixels: its size, and their CRC-32."""

    height: int
    width: int
    crc32: int

    @classmethod
    def of(cls, pixels: Tensor) -> ImageStamp:
        """The stamp of an image, uint8 [3, H, W]."""
        _, height, width = pixels.shape
        return cls(height, width, zlib.crc32(pixels.contiguous().numpy().data))


class ImageEntry(NamedTuple):
    """An image in a shard.

    id, file: of its record; the file without its folder.
    stamp: of its pixels.
    prompts: in the order of their embeddings.
    features: whether the shard has the image features too.
    """

    id: ImageId
    file: str
    stamp: ImageStamp
    prompts: tuple[str, ...]
    features: bool


class Index(NamedTuple):
    """Size and CRC-32 of a shard, and its images in the order of their embeddings."""

    bytes: int
    crc32: int
    images: list[ImageEntry]

    @property
    def num_prompts(self) -> int:
        """Number of prompts in the shard."""
        return sum(len(image.prompts) for image in self.images)


def write_index(shard: Path, images: list[ImageEntry]) -> None:
    """Write the index of a shard, which makes the shard part of the cache."""
    entries = [image._asdict() for image in images]
    content = {"bytes": shard.stat().st_size, "crc32": checksum(shard), "images": entries}
    save_json(shard.with_suffix(".json"), {"checksum": _checksum(content), **content})


def read_index(shard: Path) -> Index:
    """Read the index of a shard.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = read_any_json(shard.with_suffix(".json"))
        if content.pop("checksum") != _checksum(content):
            raise ValueError("another checksum than it says")
        images = [
            ImageEntry(x["id"], x["file"], ImageStamp(*x["stamp"]), tuple(map(sys.intern, x["prompts"])), x["features"])
            for x in content["images"]
        ]
        return Index(content["bytes"], content["crc32"], images)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(damage({shard: f"a damaged index ({error!r})"})) from None


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())


def damage(problems: Mapping[Path, str]) -> str:
    """Error message about shards of one cache, with the way to mend it."""
    found = "; ".join(f"{shard.name}: {what}" for shard, what in problems.items())
    indices = " ".join(str(shard.with_suffix(".json")) for shard in problems)
    return f"{next(iter(problems)).parent}: {found}. Delete {indices} and run openworldsam cache again"
