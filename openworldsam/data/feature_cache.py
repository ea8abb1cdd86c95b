"""What the frozen encoders compute, kept on the disk: constant per image and prompt as long as nothing is augmented.

A cache is a folder:

    header.json               what made it: weights, settings, number format
    shard-NAME.safetensors    prompt_embeddings [rows, D]; with image features also i.image_embed [C, S, S] and
                              i.high_res_0 [C/8, 4S, 4S], i.high_res_1 [C/4, 2S, 2S] of the i-th image
    shard-NAME.json           index of the shard: its size, its sha256, and for each image its id, file and prompts

An index is written when its shard is complete, by one process, so the cache is the union of the shards that have an
index, whoever made them and in whatever order.

Size, with b bytes per number (2 for bf16 and fp16, 4 for fp32): D * b per prompt (2 KiB for BEiT-3-L in bf16), and with
image features 4 * C * S * S * b per image (8 MiB at 1024 pixels in bf16). The embedding alone would not do: the mask
decoder needs the high-res levels, which only the whole encoder gives. Indices add about 80 bytes per image and the text
of each prompt.

Shapes: P prompts of an image, D width of a prompt embedding, C channels and S side of the image features.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openworldsam.checkpoint.writing import save_atomically

VERSION = 1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IMAGE_FEATURES = {
    "none": (),
    "all": ("image_embed", "high_res_0", "high_res_1"),
}
"""Tensors of an image that a cache holds beside its prompt embeddings."""
PROMPT_SETTINGS = (
    "INPUT.ANTIALIAS",
    "MODEL.PROMPT_ENCODER.NAME",
    "MODEL.PROMPT_ENCODER.IMAGE_SIZE",
    "MODEL.PROMPT_ENCODER.MAX_TOKENS",
    "MODEL.PROMPT_ENCODER.USE_IMAGE",
)
IMAGE_SETTINGS = ("MODEL.SAM2.IMAGE_SIZE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
"""Config keys that change what the encoders compute and that their weights do not show."""

ImageId = int | str


@dataclass(frozen=True)
class CacheHeader:
    """What made a cache.

    fingerprints: of the weights of the encoders whose output is held, by component, and of the tokenizer.
    settings: the config keys that count, with their values.
    image_features: "none" or "all".
    dtype: number format on the disk, "fp32", "bf16" or "fp16"; precision: arithmetic that the encoders ran in.
    """

    fingerprints: dict[str, str]
    settings: dict[str, Any]
    image_features: str
    dtype: str
    precision: str
    version: int = VERSION

    @classmethod
    def from_config(cls, cfg: CfgNode, fingerprints: Mapping[str, str], image_features: str, dtype: str) -> CacheHeader:
        """The header of a cache that this config would make.

        Args:
            cfg: the config.
            fingerprints: `Source.fingerprint` by component, from `load_weights`.
            image_features: "none" or "all".
            dtype: "fp32", "bf16" or "fp16".

        Raises:
            ValueError: an unknown choice, or the encoders' output is not constant under this config.
        """
        for what, choices, got in (("image features", IMAGE_FEATURES, image_features), ("dtype", DTYPES, dtype)):
            if got not in choices:
                raise ValueError(f"{what} of a feature cache are one of {', '.join(choices)}, got {got!r}")
        for key in ("INPUT.FLIP", "INPUT.LARGE_SCALE_JITTER", "MODEL.PROMPT_ENCODER.TRAINABLE"):
            if _get(cfg, key):
                raise ValueError(f"{key} is on: features then change from visit to visit; switch it or the cache off")
        keys, components = [*PROMPT_SETTINGS], ["beit3", "tokenizer"]
        if image_features != "none":
            keys, components = [*keys, *IMAGE_SETTINGS], [*components, "sam2"]
        return cls(
            {component: fingerprints[component] for component in components if component in fingerprints},
            {key: _get(cfg, key) for key in keys},
            image_features,
            dtype,
            cfg.MODEL.PRECISION,
        )

    def differences(self, other: CacheHeader) -> list[str]:
        """What differs, each as "thing is ours, not theirs". A component that one of them lacks is not compared."""
        ours, theirs = asdict(self), asdict(other)
        for header in (ours, theirs):
            header.update(header.pop("settings"))
        shared = self.fingerprints.keys() & other.fingerprints.keys()
        for component in shared:
            name = f"fingerprint of the {component}"
            ours[name], theirs[name] = self.fingerprints[component], other.fingerprints[component]
        del ours["fingerprints"], theirs["fingerprints"]
        return [
            f"{key} is {ours.get(key)}, not {theirs.get(key)}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]


class CachedImage(NamedTuple):
    """An image's part of a cache.

    image_id, file_name: of its record; prompts: P texts; embeddings: [P, D] of these; features: the tensors that
    `IMAGE_FEATURES` names, or none if another shard holds them.
    """

    image_id: ImageId
    file_name: str
    prompts: Sequence[str]
    embeddings: Tensor
    features: Sequence[Tensor] = ()


class FeatureCacheWriter:
    """Adds shards to a cache.

    Args:
        folder: of the cache; made if it is not there.
        header: what makes the shards.

    Raises:
        ValueError: the folder holds a cache that something else made, or that is damaged.
        OSError: it cannot be written.
    """

    def __init__(self, folder: str | Path, header: CacheHeader) -> None:
        self.folder, self.header = Path(folder), header
        path = self.folder / "header.json"
        if not path.exists():
            _write_json(path, asdict(header))
        elif differences := read_header(self.folder).differences(header):
            raise ValueError(f"{folder} holds another cache: its {'; its '.join(differences)}. Choose another folder")

    def write(self, name: str, images: Sequence[CachedImage]) -> None:
        """Write a shard, complete or not at all; a shard of the same name is replaced.

        Args:
            name: tells it from other shards; no two processes may write one of the same name at once.
            images: its content.

        Raises:
            ValueError: a feature is not finite in the cache's number format.
            OSError: the disk is full or not writable.
        """
        path = self.folder / f"shard-{name}.safetensors"
        for leftover in self.folder.glob(f".shard-{name}.*.part"):  # of a killed run
            leftover.unlink(missing_ok=True)
        tensors = {"prompt_embeddings": torch.cat([self._stored(image, image.embeddings) for image in images])}
        for number, image in enumerate(images):
            names = IMAGE_FEATURES[self.header.image_features] if image.features else ()
            for feature, value in zip(names, image.features, strict=True):
                tensors[f"{number}.{feature}"] = self._stored(image, value)
        save_atomically(path, lambda partial: save_file(tensors, partial))
        entries = [
            {"id": i.image_id, "file": Path(i.file_name).name, "prompts": list(i.prompts), "features": bool(i.features)}
            for i in images
        ]
        index = {"bytes": path.stat().st_size, "sha256": _sha256(path), "images": entries}
        _write_json(path.with_suffix(".json"), index)

    def _stored(self, image: CachedImage, value: Tensor) -> Tensor:
        """A tensor in the cache's number format."""
        stored = value.detach().to(DTYPES[self.header.dtype]).cpu().contiguous()
        if not stored.isfinite().all():
            raise ValueError(
                f"features of {image.file_name} are not finite in {self.header.dtype}; "
                "use --dtype fp32 or bf16, and MODEL.PRECISION fp32"
            )
        return stored


class _Entry(NamedTuple):
    """An image in a shard: shard, number of the image and first row in it, file name, prompts in row order."""

    shard: int
    number: int
    row: int
    file: str
    prompts: tuple[str, ...]
    features: bool


class FeatureCache:
    """Reads a cache by memory map. May be copied to other processes; each opens the shards for itself.

    Opening compares the sizes of all shards; `verify` reads them.

    Args:
        folder: of the cache.

    Raises:
        FileNotFoundError: no cache is there, or a shard is missing.
        ValueError: header, index or shard is damaged; says what to delete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        self.shards: list[Path] = []
        self.num_prompts = 0
        self._digests: list[str] = []
        self._images: dict[ImageId, list[_Entry]] = {}
        self._open: tuple[int, dict[int, Any]] = (0, {})
        for index in sorted(self.folder.glob("shard-*.json")):
            self._add(index)

    @property
    def num_images(self) -> int:
        """Images of which anything is held."""
        return len(self._images)

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
        entries = self._images.get(image_id, [])
        held = {prompt for entry in entries for prompt in entry.prompts}
        lacks_features = self.header.image_features != "none" and not any(entry.features for entry in entries)
        return [prompt for prompt in prompts if prompt not in held], lacks_features

    def attach(self, mapped: dict[str, Any]) -> dict[str, Any]:
        """Add what is held to the output of a `DatasetMapper`.

        Args:
            mapped: with image_id, file_name and P prompts.

        Returns:
            a copy with prompt_embeddings, float32 [P, D]; and, in the cache's number format, where it has them,
            image_embed [C, S, S] and high_res ([C/8, 4S, 4S], [C/4, 2S, 2S]). All own their memory.

        Raises:
            KeyError: the cache lacks the image or a prompt of it; says which and how to add them.
            ValueError: a shard is damaged.
        """
        image_id, prompts = mapped["image_id"], mapped["prompts"]
        entries = self._images.get(image_id, [])
        self._check_held(mapped, entries)
        rows = {prompt: (e.shard, e.row + place) for e in entries for place, prompt in enumerate(e.prompts)}
        embeddings = [self._row(*rows[prompt]) for prompt in prompts]
        found = {**mapped, "prompt_embeddings": torch.cat(embeddings).float()}
        names = IMAGE_FEATURES[self.header.image_features]
        if names:
            entry = next(entry for entry in entries if entry.features)
            # a view would drag the whole shard along when a worker hands it over
            embed, *high_res = (self._tensor(entry.shard, f"{entry.number}.{name}").clone() for name in names)
            found.update(image_embed=embed, high_res=tuple(high_res))
        return found

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            ValueError: names the damaged shards.
        """
        pairs = zip(self.shards, self._digests, strict=True)
        if damaged := [path for path, digest in pairs if _sha256(path) != digest]:
            raise ValueError(_damage(damaged, "another sha256 than its index says"))

    def _add(self, index: Path) -> None:
        """Take a shard into the union."""
        content, shard = _read_json(index), index.with_suffix(".safetensors")
        number = len(self.shards)
        try:
            if not shard.is_file():
                raise FileNotFoundError(_damage([shard], "no file, only an index"))
            if shard.stat().st_size != content["bytes"]:
                raise ValueError(_damage([shard], f"{shard.stat().st_size} bytes, its index says {content['bytes']}"))
            row = 0
            for place, image in enumerate(content["images"]):
                prompts = tuple(map(sys.intern, image["prompts"]))
                entry = _Entry(number, place, row, image["file"], prompts, image["features"])
                self._images.setdefault(image["id"], []).append(entry)
                row += len(prompts)
            self._digests.append(content["sha256"])
        except (KeyError, TypeError) as error:
            raise ValueError(_damage([shard], f"a damaged index ({error!r})")) from None
        self.shards.append(shard)
        self.num_prompts += row

    def _check_held(self, mapped: Mapping[str, Any], entries: Sequence[_Entry]) -> None:
        """Raise KeyError for what `attach` would look for in vain."""
        image_id, name = mapped["image_id"], Path(mapped["file_name"]).name
        if other := {entry.file for entry in entries} - {name}:
            raise KeyError(
                f"image {image_id} is {name}, but {min(other)} in {self.folder}: that cache is of another dataset"
            )
        prompts, lacks_features = self.missing(image_id, mapped["prompts"])
        if prompts or lacks_features:
            what = f"the prompt {prompts[0]!r}" if prompts else "the image features"
            what = what if entries else "anything"
            raise KeyError(f"{self.folder} does not hold {what} of image {image_id} ({name}); add it: {self.command}")

    def _file(self, shard: int) -> Any:
        """A shard, memory-mapped by this process."""
        process, files = self._open
        if process != os.getpid():
            files = {}
            self._open = (os.getpid(), files)
        if shard not in files:
            files[shard] = safe_open(self.shards[shard], framework="pt")
        return files[shard]

    def _row(self, shard: int, row: int) -> Tensor:
        try:
            return self._file(shard).get_slice("prompt_embeddings")[row : row + 1]
        except (SafetensorError, OSError) as error:
            raise ValueError(_damage([self.shards[shard]], str(error))) from error

    def _tensor(self, shard: int, name: str) -> Tensor:
        try:
            return self._file(shard).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(_damage([self.shards[shard]], str(error))) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, {})}


def tokenizer_fingerprint(cfg: CfgNode) -> dict[str, str]:
    """The tokenizer's entry among the fingerprints; none where its file is not there, as training does not read it."""
    path = Path(cfg.MODEL.PROMPT_ENCODER.TOKENIZER)
    return {"tokenizer": _sha256(path)[:16]} if path.is_file() else {}


def read_header(folder: str | Path) -> CacheHeader:
    """What made the cache of a folder.

    Raises:
        FileNotFoundError: the folder holds no cache.
        ValueError: its header is damaged, or of another version of the format.
    """
    path = Path(folder) / "header.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no feature cache (no header.json); tools/cache_features.py makes one")
    content = _read_json(path)
    if content.get("version", VERSION) != VERSION:
        raise ValueError(f"{folder} is a cache of format {content['version']}, this code reads {VERSION}; make it anew")
    try:
        header = CacheHeader(**content)
        if header.image_features not in IMAGE_FEATURES or header.dtype not in DTYPES:
            raise TypeError(f"image features {header.image_features!r} of dtype {header.dtype!r}")
        return header
    except TypeError as error:
        raise ValueError(f"{path} is damaged ({error}); make the cache anew in another folder") from None


def _get(cfg: CfgNode, key: str) -> Any:
    value = reduce(getattr, key.split("."), cfg)
    return list(value) if isinstance(value, tuple) else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and run tools/cache_features.py again, which makes it anew"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__}; delete it and make it anew")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    save_atomically(path, lambda partial: partial.write_text(json.dumps(content)))


def _damage(shards: Sequence[Path], what: str) -> str:
    """What is wrong with shards and what to do about it."""
    names = ", ".join(shard.name for shard in shards)
    indices = " ".join(str(shard.with_suffix(".json")) for shard in shards)
    return f"{shards[0].parent}: {names}: {what}. Delete {indices} and run tools/cache_features.py again"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
