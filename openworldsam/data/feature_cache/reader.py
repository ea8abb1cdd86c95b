"""Reads a cache by memory map."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openworldsam.data.feature_cache.header import DTYPES, IMAGE_FEATURES, CacheHeader, read_header
from openworldsam.data.feature_cache.index import ImageEntry, ImageId, Index, Picture, damage, read_index
from openworldsam.utils.files import checksum


class _Place(NamedTuple):
    """Where an image is: its shard, its number and its first row in it."""

    shard: int
    number: int
    row: int
    image: ImageEntry


class FeatureCache:
    """Reads a cache by memory map. May be copied to other processes; each opens the shards for itself.

    Opening reads the indices and compares the sizes of all shards; `verify` reads the shards.

    Args:
        folder: of the cache.

    Raises:
        FileNotFoundError: no cache is there, or a shard is missing.
        PermissionError: a file of it may not be read.
        ValueError: header, index or shard is damaged; says what to delete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        self.shards = [index.with_suffix(".safetensors") for index in sorted(self.folder.glob("shard-*.json"))]
        self._indices = [read_index(shard) for shard in self.shards]
        self._images: dict[ImageId, list[_Place]] = {}
        self._open: tuple[int, dict[int, Any]] = (0, {})
        for number in range(len(self.shards)):
            self._add(number)

    @property
    def num_images(self) -> int:
        """Images of which anything is held."""
        return len(self._images)

    @property
    def num_prompts(self) -> int:
        """Prompts, counted once for each image."""
        return sum(index.rows for index in self._indices)

    @property
    def command(self) -> str:
        """The command that adds what is missing."""
        return (
            f"python tools/cache_features.py --config-file CONFIG --output {self.folder} "
            f"--image-features {self.header.image_features} --dtype {self.header.dtype}"
        )

    def check(self, cfg: CfgNode, fingerprints: Mapping[str, str]) -> None:
        """Refuse a cache that does not hold what the encoders would compute.

        Args:
            cfg: config of the training.
            fingerprints: of its weights by component; one that is absent is not compared.

        Raises:
            ValueError: names everything that differs, or the augmentation that is on.
        """
        wanted = CacheHeader.from_config(cfg, fingerprints, self.header.image_features, self.header.dtype)
        if self.header.precision == "fp32":  # the best there is serves any training
            wanted = replace(wanted, precision="fp32")
        if differences := self.header.differences(wanted):
            raise ValueError(
                f"{self.folder} does not fit this training: its {'; its '.join(differences)}. "
                "Make another cache with this config (tools/cache_features.py), or train with that of the cache"
            )

    def missing(self, image_id: ImageId, prompts: Iterable[str]) -> tuple[list[str], bool]:
        """Those of the prompts that are not held for an image, and whether its image features are not, but should be.

        Reads no shard.
        """
        images = [place.image for place in self._images.get(image_id, [])]
        held = {prompt for image in images for prompt in image.prompts}
        lacks_features = self.header.image_features != "none" and not any(image.features for image in images)
        return [prompt for prompt in prompts if prompt not in held], lacks_features

    def check_picture(self, image_id: ImageId, file_name: str, picture: Picture) -> None:
        """Raise ValueError if what is held of an image, if anything, was made of other pixels."""
        places = self._images.get(image_id, [])
        if held := next((place.image for place in places if place.image.picture != picture), None):
            indices = " ".join(str(self.shards[place.shard].with_suffix(".json")) for place in places)
            raise ValueError(
                f"image {image_id} ({file_name}, {picture.width} x {picture.height}) has other pixels than in "
                f"{self.folder} ({held.file}, {held.picture.width} x {held.picture.height}). If the picture was "
                f"replaced, delete {indices} and add it again: {self.command}; if not, take a cache of this dataset"
            )

    def attach(self, mapped: dict[str, Any]) -> dict[str, Any]:
        """Add what is held to the output of a `DatasetMapper`.

        Args:
            mapped: with image_id, file_name, image (uint8 [3, H, W]) and P prompts.

        Returns:
            a copy with prompt_embeddings, float32 [P, D]; and, in the cache's number format, where it has them,
            image_embed [C, S, S] and high_res ([C/8, 4S, 4S], [C/4, 2S, 2S]). All own their memory.

        Raises:
            KeyError: the cache lacks the image or a prompt of it; says which and how to add them.
            ValueError: a shard is damaged, or was made of another picture.
        """
        image_id, prompts = mapped["image_id"], mapped["prompts"]
        places = self._images.get(image_id, [])
        self._check_held(mapped)
        self.check_picture(image_id, mapped["file_name"], Picture.of(mapped["image"]))
        rows = {text: (p.shard, p.row + nth) for p in places for nth, text in enumerate(p.image.prompts)}
        embeddings = [self._row(*rows[prompt]) for prompt in prompts]
        found = {**mapped, "prompt_embeddings": torch.cat(embeddings).float()}
        names = IMAGE_FEATURES[self.header.image_features]
        if names:
            place = next(place for place in places if place.image.features)
            # a view would drag the whole shard along when a worker hands it over
            embed, *high_res = (self._tensor(place.shard, f"{place.number}.{name}").clone() for name in names)
            found.update(image_embed=embed, high_res=tuple(high_res))
        return found

    def verify(self) -> None:
        """Read every shard and compare it with its index.

        Raises:
            ValueError: names the damaged shards.
        """
        found = {path: self._problem(path, index) for path, index in zip(self.shards, self._indices, strict=True)}
        if problems := {path: what for path, what in found.items() if what}:
            raise ValueError(damage(problems))

    def _problem(self, path: Path, index: Index) -> str:
        """What in a shard is not as its index says, or ""."""
        if checksum(path) != index.crc32:
            return "another checksum than its index says"
        features = IMAGE_FEATURES[self.header.image_features]
        expected = {f"{n}.{name}" for n, image in enumerate(index.images) if image.features for name in features}
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != {"prompt_embeddings"} | expected:
                return "other tensors than its index says"
            rows = file.get_slice("prompt_embeddings")
            if rows.get_shape()[0] != index.rows:
                return f"{rows.get_shape()[0]} prompts, its index says {index.rows}"
            return "" if rows[:0].dtype == DTYPES[self.header.dtype] else f"not in {self.header.dtype}"

    def _add(self, shard: int) -> None:
        """Take a shard into the union."""
        path, index = self.shards[shard], self._indices[shard]
        try:
            with path.open("rb") as file:  # safetensors would say of a file of another user that there is none
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise FileNotFoundError(damage({path: "no file, only an index"})) from None
        if size != index.bytes:
            raise ValueError(damage({path: f"{size} bytes, its index says {index.bytes}"}))
        row = 0
        for number, image in enumerate(index.images):
            self._images.setdefault(image.id, []).append(_Place(shard, number, row, image))
            row += len(image.prompts)

    def _check_held(self, mapped: Mapping[str, Any]) -> None:
        """Raise KeyError for what `attach` would look for in vain."""
        image_id, name = mapped["image_id"], Path(mapped["file_name"]).name
        prompts, lacks_features = self.missing(image_id, mapped["prompts"])
        if prompts or lacks_features:
            what = f"the prompt {prompts[0]!r}" if prompts else "the image features"
            what = what if image_id in self._images else "anything"
            raise KeyError(f"{self.folder} does not hold {what} of image {image_id} ({name}); add it: {self.command}")

    def _row(self, shard: int, row: int) -> Tensor:
        return self._read(shard, lambda file: file.get_slice("prompt_embeddings")[row : row + 1])

    def _tensor(self, shard: int, name: str) -> Tensor:
        return self._read(shard, lambda file: file.get_tensor(name))

    def _read(self, shard: int, take: Callable[[Any], Tensor]) -> Tensor:
        """What `take` finds in a shard, memory-mapped by this process."""
        process, files = self._open
        if process != os.getpid():
            files = {}
            self._open = (os.getpid(), files)
        try:
            if shard not in files:
                files[shard] = safe_open(self.shards[shard], framework="pt")
            return take(files[shard])
        except (SafetensorError, OSError) as error:
            raise ValueError(damage({self.shards[shard]: str(error)})) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, {})}
