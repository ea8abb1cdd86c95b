"""Adds shards to a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from openworldsam.data.feature_cache.header import HEADER, IMAGE_FEATURES, CacheHeader, read_header
from openworldsam.data.feature_cache.index import ImageEntry, write_index
from openworldsam.utils.device import DTYPES
from openworldsam.utils.files import save_json, save_safetensors


class CachedImage(NamedTuple):
    """An image to be written to a shard.

    entry: in the index.
    embeddings: [P, D] of its prompts.
    features: the tensors that `IMAGE_FEATURES` names; none if another shard has them.
    """

    entry: ImageEntry
    embeddings: Tensor
    features: Sequence[Tensor] = ()


class FeatureCacheWriter:
    """Adds shards to a cache, whose folder is created if it is missing.

    Raises:
        ValueError: the folder has a damaged cache, or one with another header.
        OSError: it cannot be written.
    """

    def __init__(self, folder: str | Path, header: CacheHeader) -> None:
        self.folder, self.header = Path(folder), header
        if not (self.folder / HEADER).exists():
            save_json(self.folder / HEADER, asdict(header))
            return
        held = read_header(folder)
        if held.image_features != header.image_features:
            what = "no image features" if held.image_features == "none" else "image features"
            raise ValueError(
                f"{folder} cannot take --image-features {header.image_features}: it holds {what}; choose another folder"
            )
        if differences := held.differences(header):
            raise ValueError(f"{folder} holds another cache: its {'; its '.join(differences)}. Choose another folder")

    def write(self, name: str, images: Sequence[CachedImage]) -> None:
        """Write a shard atomically; replaces one of the same name, which no other process may write at the same time.

        Raises:
            ValueError: a feature is not finite in the cache's number format.
            OSError: the disk is full or not writable.
        """
        tensors = {"prompt_embeddings": torch.cat([self._stored(image, image.embeddings) for image in images])}
        for number, image in enumerate(images):
            names = IMAGE_FEATURES[self.header.image_features] if image.entry.features else ()
            for feature, value in zip(names, image.features, strict=True):
                tensors[f"{number}.{feature}"] = self._stored(image, value)
        path = self.folder / f"shard-{name}.safetensors"
        save_safetensors(path, lambda partial: save_file(tensors, partial))
        write_index(path, [image.entry for image in images])

    def _stored(self, image: CachedImage, value: Tensor) -> Tensor:
        """A tensor in the cache's number format, on the CPU."""
        stored = value.detach().to(DTYPES[self.header.dtype]).cpu().contiguous()
        if not stored.isfinite().all():
            raise ValueError(
                f"features of {image.entry.file} are not finite in {self.header.dtype}; "
                "use --dtype fp32 or bf16, and MODEL.PRECISION fp32"
            )
        return stored
