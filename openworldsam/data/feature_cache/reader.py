"""Reads a cache by memory map."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openworldsam.data.feature_cache.header import IMAGE_FEATURES, WORDS, CacheHeader, read_header
from openworldsam.data.feature_cache.index import ImageEntry, ImageId, ImageStamp, Index, damage, read_index
from openworldsam.utils.device import DTYPES
from openworldsam.utils.files import checksum


class _Place(NamedTuple):
    """An image's place: its shard, its number there, and the position of its first embedding."""

    shard: Path
    number: int
    start: int
    image: ImageEntry


class FeatureCache:
    """Reads a cache by memory map. It can be pickled; each process opens the shards for itself.

    Opening a cache reads the indices and compares the sizes of all shards; `verify` also reads the shards.

    Attributes:
        shards: the index of each shard, by its path.
        num_images: number of images with prompts or features.
        num_prompts: number of prompts, counted once for each image.

    Raises:
        FileNotFoundError: the folder has no cache, or a shard is missing.
        PermissionError: a file may not be read.
        ValueError: the header, an index or a shard is damaged; says what to delete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        shards = [index.with_suffix(".safetensors") for index in sorted(self.folder.glob("shard-*.json"))]
        self.shards = {shard: read_index(shard) for shard in shards}
        self._images: dict[ImageId, list[_Place]] = {}
        self._open: dict[Path, Any] = {}
        for shard, index in self.shards.items():
            try:
                with shard.open("rb") as file:  # safetensors reports a file without read permission as missing
                    size = os.fstat(file.fileno()).st_size
            except FileNotFoundError:
                raise FileNotFoundError(damage({shard: "no file, only an index"})) from None
            if size != index.bytes:
                raise ValueError(damage({shard: f"{size} bytes, its index says {index.bytes}"}))
            start = 0
            for number, image in enumerate(index.images):
                self._images.setdefault(image.id, []).append(_Place(shard, number, start, image))
                start += len(image.prompts)
        self.num_images = sum(len({place.image.stamp for place in places}) for places in self._images.values())
        self.num_prompts = sum(index.num_prompts for index in self.shards.values())

    @property
    def command(self) -> str:
        """The command that adds what is missing."""
        return (
            f"openworldsam cache --config CONFIG --output {self.folder} "
            f"--image-features {self.header.image_features} --dtype {self.header.dtype}"
        )

    def check(self, cfg: CfgNode, fingerprints: Mapping[str, str]) -> None:
        """Refuse a cache whose content differs from what the encoders of a training would compute.

        fingerprints: of the training's weights by component; absent ones are not compared.

        Raises:
            ValueError: names everything that differs, or the augmentation that is on.
        """
        wanted = CacheHeader.from_config(cfg, fingerprints, self.header.image_features, self.header.dtype)
        if self.header.precision == "fp32":  # exact features serve any training
            wanted = replace(wanted, precision="fp32")
        if WORDS in self.header.settings:  # a training without a score head leaves them
            wanted = replace(wanted, settings=wanted.settings | {WORDS: self.header.settings[WORDS]})
        if differences := self.header.differences(wanted):
            raise ValueError(
                f"{self.folder} does not fit this training: its {'; its '.join(differences)}. "
                "Make another cache with this config (openworldsam cache), or train with that of the cache"
            )

    def missing(
        self, image_id: ImageId, prompts: Iterable[str], image: ImageStamp | str
    ) -> tuple[tuple[str, ...], bool]:
        """The given prompts of an image that the cache lacks, and whether it lacks the image features it should have.

        Reads no shard.

        Args:
            image_id, prompts: of the image.
            image: its stamp; or its file without the folder, if its pixels have not been read. Images of several
                datasets may have one id.
        """
        images = [place.image for place in self._places(image_id, image)]
        held = {prompt for image in images for prompt in image.prompts}
        lacks_features = self.header.image_features != "none" and not any(image.features for image in images)
        return tuple(prompt for prompt in prompts if prompt not in held), lacks_features

    def _places(self, image_id: ImageId, image: ImageStamp | str) -> list[_Place]:
        return [place for place in self._images.get(image_id, []) if image in (place.image.stamp, place.image.file)]

    def _replaced(self, image_id: ImageId, file_name: str, stamp: ImageStamp) -> str | None:
        """Error message if the cache holds features of other pixels of an image's file."""
        if not (places := self._places(image_id, Path(file_name).name)):
            return None
        held = places[0].image
        indices = " ".join(str(place.shard.with_suffix(".json")) for place in places)
        return (
            f"image {image_id} ({file_name}, {stamp.width} x {stamp.height}) has other pixels than in "
            f"{self.folder} ({held.file}, {held.stamp.width} x {held.stamp.height}). If the image was replaced, "
            f"delete {indices} and add it again: {self.command}; if not, use a cache of this dataset"
        )

    def attach(self, mapped: dict[str, Any]) -> dict[str, Any]:
        """Add cached features to the output of a `DatasetMapper`.

        Args:
            mapped: with image_id, file_name, image (uint8 [3, H, W]) and P prompts.

        Returns:
            a copy with prompt_embeddings, float32 [P, D or 2D]. A cache with image features also adds, in its own
            number format, image_embed [C, S, S] and high_res ([C/8, 4S, 4S], [C/4, 2S, 2S]). All tensors own their
            memory.

        Raises:
            KeyError: the cache lacks the image or one of its prompts; says which and how to add it.
            ValueError: a shard is damaged, or the image has other pixels.
        """
        image_id, prompts, stamp = mapped["image_id"], mapped["prompts"], ImageStamp.of(mapped["image"])
        places = self._places(image_id, stamp)
        if not places and (message := self._replaced(image_id, mapped["file_name"], stamp)):
            raise ValueError(message)
        absent, lacks_features = self.missing(image_id, prompts, stamp)
        if absent or lacks_features:
            what = f"the prompt {absent[0]!r}" if absent else "the image features"
            name, what = Path(mapped["file_name"]).name, what if places else "anything"
            raise KeyError(f"{self.folder} does not hold {what} of image {image_id} ({name}); add it: {self.command}")
        positions = {text: (p.shard, p.start + nth) for p in places for nth, text in enumerate(p.image.prompts)}
        embeddings = [self._read(shard, "prompt_embeddings", i) for shard, i in map(positions.__getitem__, prompts)]
        found = {**mapped, "prompt_embeddings": torch.stack(embeddings).float()}
        if names := IMAGE_FEATURES[self.header.image_features]:
            shard, number, *_ = next(place for place in places if place.image.features)
            embed, *high_res = (self._read(shard, f"{number}.{name}") for name in names)
            found.update(image_embed=embed, high_res=tuple(high_res))
        return found

    def verify(self) -> None:
        """Read every shard and compare it with its index.

        Raises:
            ValueError: names the damaged shards.
        """
        found = {shard: self._problem(shard, index) for shard, index in self.shards.items()}
        if problems := {shard: what for shard, what in found.items() if what}:
            raise ValueError(damage(problems))

    def _problem(self, path: Path, index: Index) -> str:
        """How a shard differs from its index; empty if it does not."""
        if checksum(path) != index.crc32:
            return "another checksum than its index says"
        features = IMAGE_FEATURES[self.header.image_features]
        expected = {f"{n}.{name}" for n, image in enumerate(index.images) if image.features for name in features}
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != {"prompt_embeddings"} | expected:
                return "other tensors than its index says"
            embeddings = file.get_slice("prompt_embeddings")
            if embeddings.get_shape()[0] != index.num_prompts:
                return f"{embeddings.get_shape()[0]} prompts, its index says {index.num_prompts}"
            return "" if embeddings[:0].dtype == DTYPES[self.header.dtype] else f"not in {self.header.dtype}"

    def _read(self, shard: Path, name: str, at: int | slice = slice(None)) -> Tensor:
        """A copy of a tensor or of a part: a view would send the whole shard from a worker to the training."""
        try:
            if shard not in self._open:
                self._open[shard] = safe_open(shard, framework="pt")
            return self._open[shard].get_slice(name)[at].clone()
        except (SafetensorError, OSError) as error:
            raise ValueError(damage({shard: str(error)})) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}
