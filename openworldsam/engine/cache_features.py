"""Fills a feature cache for a training; the command line of openworldsam cache."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import Tensor

from openworldsam.checkpoint import load_weights
from openworldsam.config import load_config
from openworldsam.data.datasets import register_datasets
from openworldsam.data.datasets.catalog import check_registered
from openworldsam.data.feature_cache import (
    CachedImage,
    CacheHeader,
    FeatureCache,
    FeatureCacheWriter,
    ImageEntry,
    ImageStamp,
    tokenizer_fingerprint,
)
from openworldsam.data.feature_cache.plan import Work, batches, plan, wanted_prompts
from openworldsam.modeling import OpenWorldSAM
from openworldsam.utils.device import DTYPES, usable_device
from openworldsam.utils.launch import launch_command, say
from openworldsam.utils.locking import lock
from openworldsam.utils.progress import Progress

logger = logging.getLogger(__name__)

SHARD_IMAGES = 512
"""Most images of a shard; bounds the work that a kill can lose."""
SHARD_BYTES = 2**30
"""Approximate size limit of a shard, which is kept in memory until it is written."""


class Summary(NamedTuple):
    """Numbers of images and prompts that a run added, and the image files that it could not read."""

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
    """Compute the missing features of all images of DATASETS.TRAIN and of all prompts that training may ask.

    An interrupted run resumes after its last complete shard. Unreadable images are reported and skipped.

    Args:
        cfg: config of the training; its datasets are registered (`data.datasets.register_datasets`).
        folder: of the cache.
        image_features: "none" or "all".
        dtype: number format on the disk: "fp32", "bf16" or "fp16".
        part, num_parts: the part of the work to do, of this many disjoint parts; the parts may run at once.
        batch_size, shard_images: images encoded at a time, and most images of a shard (the same for all parts).

    Raises:
        FileNotFoundError, ValueError: weights or data are missing or do not fit, the folder has another cache, another
            process fills this part, an augmentation is on, or no image is readable.
        OSError: the cache cannot be written.
    """
    if not 0 <= part < num_parts:
        raise ValueError(f"part {part} of {num_parts}: parts are numbered from 0 to {max(num_parts, 1) - 1}")
    if batch_size < 1 or shard_images < 1:
        raise ValueError(f"batch size and images of a shard are 1 or more, got {batch_size} and {shard_images}")
    CacheHeader.from_config(cfg, {}, image_features, dtype)  # refuses augmentation before the weights are read
    busy = f"another process fills part {part} of {folder} just now; wait for its end, or choose another folder"
    with lock(Path(folder) / f".part-{part}.lock", busy):
        wanted = wanted_prompts(cfg)  # which takes minutes: the folder is usable
        model = OpenWorldSAM(cfg)
        model.prompt_encoder.prepare()
        sources = load_weights(model, cfg, need_adapter=False)
        model.to(cfg.MODEL.DEVICE).eval()
        fingerprints = {name: source.fingerprint for name, source in sources.items()} | tokenizer_fingerprint(cfg)
        header = CacheHeader.from_config(cfg, fingerprints, image_features, dtype)
        writer, cache = FeatureCacheWriter(folder, header), FeatureCache(folder)
        if per_image := image_bytes(cfg, header):
            shard_images = min(shard_images, max(1, SHARD_BYTES // per_image))
        planned = plan(wanted, cache, shard_images)[part::num_parts]
        shards = [shard for shard in planned if shard]
        logger.info("%d of %d shards are there", len(planned) - len(shards), len(planned))
        return _fill(model, writer, cache, shards, batch_size, cfg.DATALOADER.NUM_WORKERS)


def image_bytes(cfg: CfgNode, header: CacheHeader) -> int:
    """Size of one image's features in a cache, in bytes."""
    numbers = cfg.MODEL.SAM2.WIDTH * (cfg.MODEL.SAM2.IMAGE_SIZE // 16) ** 2
    levels = {"none": 0, "all": 4}[header.image_features]  # high-res: 16 / 8 and 4 / 4 times the embedding
    return levels * numbers * DTYPES[header.dtype].itemsize


def _fill(
    model: OpenWorldSAM,
    writer: FeatureCacheWriter,
    cache: FeatureCache,
    shards: Sequence[Sequence[Work]],
    batch_size: int,
    num_workers: int,
) -> Summary:
    """Compute and write the shards, one after the other.

    Raises:
        ValueError: no image is readable.
    """
    total = sum(map(len, shards))
    logger.info("%d images to read", total)
    progress = Progress(total)
    skipped: list[str] = []
    added = 0
    loaded = batches(shards, batch_size, num_workers)
    for shard in shards:
        done: list[CachedImage] = []
        for _ in range(0, len(shard), batch_size):
            readable: list[tuple[ImageEntry, Tensor]] = []
            batch = next(loaded)
            for work, pixels in batch:
                image_id, file = work.record["image_id"], work.record["file_name"]
                if isinstance(pixels, str):
                    logger.warning("skipped: %s", pixels)
                    skipped.append(file)
                    continue
                stamp = ImageStamp.of(pixels)
                entry = ImageEntry(image_id, Path(file).name, stamp, *cache.missing(image_id, work.prompts, stamp))
                if entry.prompts or entry.features:
                    readable.append((entry, pixels))
            done += encode(model, readable, writer.header)
            progress.update(len(batch), sum(len(entry.prompts) for entry, _ in readable))
        if done:
            added += len(done)
            content = json.dumps([image.entry for image in done])  # so that a resumed run writes the same shards
            writer.write(hashlib.sha256(content.encode()).hexdigest()[:16], done)
    if skipped and len(skipped) == total and not cache.num_images:
        raise ValueError(f"not one of {total} images could be read, the last is {skipped[-1]}")
    return Summary(added, progress.prompts, skipped)


@torch.no_grad()
def encode(model: OpenWorldSAM, batch: Sequence[tuple[ImageEntry, Tensor]], header: CacheHeader) -> list[CachedImage]:
    """Run the frozen encoders over images, uint8 [3, H, W] each, and bring the results to the CPU."""
    if not batch:
        return []
    dtype = DTYPES[header.dtype]
    images = [pixels.to(model.device) for _, pixels in batch]
    prompts = [prompt for entry, _ in batch for prompt in entry.prompts]
    counts = [len(entry.prompts) for entry, _ in batch]
    embeddings = torch.zeros(0, model.prompt_encoder.embed_dim * (1 + (model.score_head is not None)))
    if prompts:
        image_index = torch.arange(len(batch)).repeat_interleave(torch.tensor(counts))
        embeddings = model.encode_prompts(model.prompt_inputs(images), prompts, image_index)
    features: Iterator[Sequence[Tensor]] = iter(())
    if chosen := [image for image, (entry, _) in zip(images, batch, strict=True) if entry.features]:
        encoded = model.encode_images(chosen)
        levels = (encoded.embed, *encoded.high_res)
        features = iter(list(zip(*(level.to(dtype).cpu() for level in levels), strict=True)))
    return [
        CachedImage(entry, of_image, next(features) if entry.features else ())
        for (entry, _), of_image in zip(batch, embeddings.to(dtype).cpu().split(counts), strict=True)
    ]


def cache_features(args: argparse.Namespace) -> None:
    """Fill or verify the cache; every process runs this."""
    setup_logger(None, comm.get_rank(), name="openworldsam")
    cfg = load_config(args.config, args.opts)
    if args.verify:
        cache = FeatureCache(args.output)
        cache.check(cfg, {})
        cache.verify()
        size = sum(path.stat().st_size for path in cache.shards)
        say(
            f"{args.output} is intact: {cache.num_prompts:,} prompts of {cache.num_images:,} images in "
            f"{len(cache.shards)} shards, {size / 1e6:,.1f} MB, image features {cache.header.image_features}, "
            f"{cache.header.dtype}"
        )
        return
    register_datasets(cfg)
    check_registered(cfg.DATASETS.TRAIN)
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
    say(f"added {added.prompts:,} prompts of {added.images:,} images; {len(added.skipped)} images were not readable")


def run(args: argparse.Namespace) -> None:
    """Start the processes; exit with 2 after a user error, with 130 after Ctrl-C."""
    processes = 1 if args.verify else args.processes
    launch_command(cache_features, stopped="stopped; the same command goes on", args=(args,), num_gpus=processes)
