"""Fills a feature cache with what training will ask for; the command line of tools/cache_features.py."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import openworldsam.data.datasets  # noqa: F401  (registers the datasets)
from openworldsam.checkpoint import load_weights
from openworldsam.config import load_config
from openworldsam.data.feature_cache import (
    DTYPES,
    IMAGE_FEATURES,
    CachedImage,
    CacheHeader,
    FeatureCache,
    FeatureCacheWriter,
    ImageId,
    tokenizer_fingerprint,
)
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.preprocessing import read_image, to_tensor
from openworldsam.device import usable_device
from openworldsam.engine.launch import launch_command
from openworldsam.engine.trainer import training_dataset
from openworldsam.modeling import OpenWorldSAM

logger = logging.getLogger(__name__)

SHARD_IMAGES = 512
"""Most images of a shard; it also bounds what a kill can lose."""
SHARD_BYTES = 2**30
"""About the largest shard; it is in memory until it is written."""


class Work(NamedTuple):
    """An image of which something is to be computed: its prompts, and its image features or not."""

    image_id: ImageId
    file_name: str
    prompts: tuple[str, ...]
    features: bool


class Shard(NamedTuple):
    """A shard to be made. Its name follows from its content, so that a run taken up again makes the same."""

    name: str
    work: list[Work]


class Summary(NamedTuple):
    """What a run added, and the files that it could not read."""

    images: int
    prompts: int
    skipped: list[str]


def build_cache(
    cfg: CfgNode,
    folder: str | Path,
    *,
    image_features: str = "none",
    dtype: str = "bf16",
    part: int = 0,
    num_parts: int = 1,
    batch_size: int = 4,
    shard_images: int = SHARD_IMAGES,
) -> Summary:
    """Compute what a cache lacks for all images of DATASETS.TRAIN and all that may be asked about them.

    What is there stays; a run that was stopped goes on after its last complete shard. Images that cannot be read are
    reported and left out.

    Args:
        cfg: config of the training.
        folder: of the cache.
        image_features: "none" or "all".
        dtype: number format on the disk: "fp32", "bf16" or "fp16".
        part, num_parts: which of how many disjoint parts of the work; the parts may run at once.
        batch_size, shard_images: images encoded at a time, and most images of a shard (the same for all parts).

    Raises:
        FileNotFoundError, ValueError: weights or data are missing or do not fit, the folder holds another cache, an
            augmentation is on, or not one image could be read.
        OSError: the cache cannot be written.
    """
    if not 0 <= part < num_parts:
        raise ValueError(f"part {part} of {num_parts}: parts are numbered from 0 to {num_parts - 1}")
    if batch_size < 1 or shard_images < 1:
        raise ValueError(f"batch size and images of a shard are 1 or more, got {batch_size} and {shard_images}")
    CacheHeader.from_config(cfg, {}, image_features, dtype)  # refuses augmentation before the weights are read
    wanted = wanted_prompts(cfg)
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg, need_adapter=False)
    model.to(cfg.MODEL.DEVICE).eval()
    fingerprints = {component: source.fingerprint for component, source in sources.items()}
    fingerprints |= tokenizer_fingerprint(cfg)
    header = CacheHeader.from_config(cfg, fingerprints, image_features, dtype)
    writer = FeatureCacheWriter(folder, header)
    if per_image := image_bytes(cfg, header):
        shard_images = min(shard_images, max(1, SHARD_BYTES // per_image))
    shards = plan(wanted, FeatureCache(folder), shard_images)[part::num_parts]
    return _fill(model, writer, shards, batch_size, cfg.DATALOADER.NUM_WORKERS)


def image_bytes(cfg: CfgNode, header: CacheHeader) -> int:
    """Bytes that the image features of one image take in a cache."""
    numbers = cfg.MODEL.SAM2.WIDTH * (cfg.MODEL.SAM2.IMAGE_SIZE // 16) ** 2
    levels = {"none": 0, "all": 4}[header.image_features]  # high-res: 16 / 8 and 4 / 4 times the embedding
    return levels * numbers * DTYPES[header.dtype].itemsize


def wanted_prompts(cfg: CfgNode) -> dict[ImageId, tuple[str, list[str]]]:
    """File and prompts of each image of DATASETS.TRAIN, by image id.

    Raises:
        ValueError: two datasets use one id for different images.
    """
    dataset = training_dataset(cfg)
    assert isinstance(dataset.mapper, DatasetMapper)
    wanted: dict[ImageId, tuple[str, list[str]]] = {}
    for record in dataset.records:
        file, texts = wanted.setdefault(record["image_id"], (record["file_name"], []))
        if Path(file).name != Path(record["file_name"]).name:
            raise ValueError(
                f"image {record['image_id']} is {file} and also {record['file_name']}; "
                "make a cache for each dataset of DATASETS.TRAIN"
            )
        texts.extend(text for text in dataset.mapper.texts(record) if text not in texts)
    return wanted


def plan(
    wanted: Mapping[ImageId, tuple[str, Sequence[str]]], cache: FeatureCache, shard_images: int
) -> list[Shard | None]:
    """The shards that are to be made; None where all is there.

    The borders depend on what is wanted alone, not on what is there: every part and every later run has the same.
    """
    images = [(image_id, *rest) for image_id, rest in wanted.items() if rest[1]]
    shards: list[Shard | None] = []
    for start in range(0, len(images), shard_images):
        work = []
        for image_id, file, texts in images[start : start + shard_images]:
            prompts, lacks_features = cache.missing(image_id, texts)
            if prompts or lacks_features:
                work.append(Work(image_id, file, tuple(prompts), lacks_features))
        content = json.dumps([(w.image_id, w.prompts, w.features) for w in work])
        shards.append(Shard(hashlib.sha256(content.encode()).hexdigest()[:16], work) if work else None)
    return shards


class _Images(Dataset[tuple[Work, Tensor | str]]):
    """The pixels of each image, or why they could not be read."""

    def __init__(self, work: Sequence[Work]) -> None:
        self.work = work

    def __getitem__(self, index: int) -> tuple[Work, Tensor | str]:
        try:
            return self.work[index], to_tensor(read_image(self.work[index].file_name))
        except (ValueError, OSError) as error:
            return self.work[index], str(error)


def _batches(shards: Sequence[Shard], batch_size: int, num_workers: int) -> Iterator[list[tuple[Work, Tensor | str]]]:
    """All images in order; no batch belongs to two shards."""
    work = [work for shard in shards for work in shard.work]
    places, start = [], 0
    for shard in shards:
        end = start + len(shard.work)
        places += [list(range(first, min(first + batch_size, end))) for first in range(start, end, batch_size)]
        start = end
    return iter(DataLoader(_Images(work), batch_sampler=places, num_workers=num_workers, collate_fn=list))


def _fill(
    model: OpenWorldSAM,
    writer: FeatureCacheWriter,
    planned: Sequence[Shard | None],
    batch_size: int,
    num_workers: int,
) -> Summary:
    """Compute and write the shards, one after the other."""
    shards = [shard for shard in planned if shard is not None]
    total = sum(len(shard.work) for shard in shards)
    logger.info("%d of %d shards are there; %d images to encode", len(planned) - len(shards), len(planned), total)
    batches = _batches(shards, batch_size, num_workers)
    progress = Progress(total)
    skipped: list[str] = []
    for shard in shards:
        done: list[CachedImage] = []
        for _ in range(math.ceil(len(shard.work) / batch_size)):
            readable: list[tuple[Work, Tensor]] = []
            batch = next(batches)
            for work, pixels in batch:
                if isinstance(pixels, Tensor):
                    readable.append((work, pixels))
                else:
                    logger.warning("skipped: %s", pixels)
                    skipped.append(work.file_name)
            done += encode(model, readable, writer.header)
            progress.update(len(batch), sum(len(work.prompts) for work, _ in readable))
        if done:
            writer.write(shard.name, done)
    if skipped and not FeatureCache(writer.folder).num_images:
        raise ValueError(f"not one of {total} images could be read, the last is {skipped[-1]}")
    return Summary(total - len(skipped), progress.prompts, skipped)


@torch.no_grad()
def encode(model: OpenWorldSAM, batch: Sequence[tuple[Work, Tensor]], header: CacheHeader) -> list[CachedImage]:
    """Run the frozen encoders over images, uint8 [3, H, W] each, and bring the results to the CPU."""
    if not batch:
        return []
    dtype = DTYPES[header.dtype]
    images = [pixels.to(model.device) for _, pixels in batch]
    prompts = [prompt for work, _ in batch for prompt in work.prompts]
    counts = [len(work.prompts) for work, _ in batch]
    embeddings = torch.zeros(0, model.prompt_encoder.embed_dim)
    if prompts:
        image_index = torch.arange(len(batch)).repeat_interleave(torch.tensor(counts))
        embeddings = model.encode_prompts(model.prompt_inputs(images), prompts, image_index)
    features: Iterator[Sequence[Tensor]] = iter(())
    if chosen := [image for image, (work, _) in zip(images, batch, strict=True) if work.features]:
        encoded = model.encode_images(chosen)
        held = (encoded.embed, *encoded.high_res)
        features = iter(list(zip(*(level.to(dtype).cpu() for level in held), strict=True)))
    rows = embeddings.to(dtype).cpu().split(counts)
    return [
        CachedImage(work.image_id, work.file_name, work.prompts, own, next(features) if work.features else ())
        for (work, _), own in zip(batch, rows, strict=True)
    ]


class Progress:
    """Logs how far a run is, at most once in `period` seconds and at the end."""

    def __init__(self, total: int, period: float = 10.0) -> None:
        self.total, self.period = total, period
        self.images = self.prompts = 0
        self.start = self.last = time.monotonic()

    def update(self, images: int, prompts: int) -> None:
        """Count what was just done."""
        self.images += images
        self.prompts += prompts
        now = time.monotonic()
        if now - self.last < self.period and self.images < self.total:
            return
        self.last = now
        rate = self.images / max(now - self.start, 1e-9)
        left = datetime.timedelta(seconds=round((self.total - self.images) / rate))
        logger.info(
            "%s of %s images, %s prompts, %.1f images/s, ETA %s",
            *(f"{self.images:,}", f"{self.total:,}", f"{self.prompts:,}", rate, left),
        )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Compute once what the frozen encoders make of the training images and prompts."
    )
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("--output", required=True, help="folder of the cache; what is there already stays")
    parser.add_argument(
        "--image-features",
        choices=tuple(IMAGE_FEATURES),
        default="none",
        help="SAM2's output too: 8 MiB per image at 1024 pixels in half precision",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="number format on the disk")
    parser.add_argument("--part", type=int, default=0, help="which of the parts, from 0")
    parser.add_argument("--num-parts", type=int, default=1, help="parts of the work, for several machines or jobs")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine; they share this part")
    parser.add_argument("--batch-size", type=int, default=4, help="images encoded at a time")
    parser.add_argument("--verify", action="store_true", help="compare an existing cache with its checksums and stop")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="override config keys")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """What every process runs."""
    setup_logger(None, comm.get_rank(), name="openworldsam")
    cfg = load_config(args.config_file, args.opts)
    print(_verify(cfg, args.output) if args.verify else _build(cfg, args))


def _build(cfg: CfgNode, args: argparse.Namespace) -> str:
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    processes = comm.get_world_size()
    added = build_cache(
        cfg,
        args.output,
        image_features=args.image_features,
        dtype=args.dtype,
        part=args.part * processes + comm.get_rank(),
        num_parts=args.num_parts * processes,
        batch_size=args.batch_size,
    )
    return f"added {added.prompts:,} prompts of {added.images:,} images; {len(added.skipped)} images were not readable"


def _verify(cfg: CfgNode, folder: str) -> str:
    cache = FeatureCache(folder)
    cache.check(cfg, {})
    cache.verify()
    size = sum(path.stat().st_size for path in cache.shards)
    return (
        f"{folder} is intact: {cache.num_prompts:,} prompts of {cache.num_images:,} images in {len(cache.shards)} "
        f"shards, {size / 1e6:,.1f} MB, image features {cache.header.image_features}, {cache.header.dtype}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes; exits with 2 after a user error."""
    args = parse_args(argv)
    launch_command(run, args=(args,), num_gpus=1 if args.verify else args.num_gpus)
