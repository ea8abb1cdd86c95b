"""The work that fills a cache: images and prompts that it lacks, divided into shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openworldsam.data.feature_cache.index import ImageId
from openworldsam.data.feature_cache.reader import FeatureCache
from openworldsam.data.loader import training_dataset
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.preprocessing import to_tensor
from openworldsam.data.records import Record
from openworldsam.utils.workers import end_with_parent


class Work(NamedTuple):
    """An image to encode: its record, the prompts to encode with it, and whether its image features are needed."""

    image_id: ImageId
    record: Record
    prompts: tuple[str, ...]
    features: bool


class Shard(NamedTuple):
    """A shard to write. Its name is a hash of its content, so that a resumed run writes the same shards."""

    name: str
    work: list[Work]


def wanted_prompts(cfg: CfgNode) -> dict[ImageId, tuple[Record, list[str]]]:
    """Return the record (without ground truth) and prompts of each image of DATASETS.TRAIN, by image id.

    Raises:
        ValueError: two datasets use one id for different images.
    """
    dataset = training_dataset(cfg)
    assert isinstance(dataset.mapper, DatasetMapper)
    wanted: dict[ImageId, tuple[Record, list[str]]] = {}
    for record in dataset.records:
        first, texts = wanted.setdefault(record["image_id"], (record.without_ground_truth(), []))
        if Path(first["file_name"]).name != Path(record["file_name"]).name:
            raise ValueError(
                f"image {record['image_id']} is {first['file_name']} and also {record['file_name']}; "
                "make a cache for each dataset of DATASETS.TRAIN"
            )
        texts.extend(text for text in dataset.mapper.texts(record) if text not in texts)
    return wanted


def plan(
    wanted: Mapping[ImageId, tuple[Record, Sequence[str]]], cache: FeatureCache, shard_images: int
) -> list[Shard | None]:
    """Return the shards to write, None where the cache is complete.

    Borders between shards depend on the dataset alone, not on the cache: they are the same for every part and run.
    """
    images = [(image_id, *rest) for image_id, rest in wanted.items() if rest[1]]
    shards: list[Shard | None] = []
    for start in range(0, len(images), shard_images):
        work = []
        for image_id, record, texts in images[start : start + shard_images]:
            prompts, lacks_features = cache.missing(image_id, texts)
            if prompts or lacks_features:
                work.append(Work(image_id, record, tuple(prompts), lacks_features))
        content = json.dumps([(w.image_id, w.prompts, w.features) for w in work])
        shards.append(Shard(hashlib.sha256(content.encode()).hexdigest()[:16], work) if work else None)
    return shards


class _Images(Dataset[tuple[Work, Tensor | str]]):
    """The pixels of each image, or the reason why they cannot be read."""

    def __init__(self, work: Sequence[Work]) -> None:
        self.work = work

    def __getitem__(self, index: int) -> tuple[Work, Tensor | str]:
        try:
            return self.work[index], to_tensor(self.work[index].record.read_image())
        except (ValueError, OSError) as error:
            return self.work[index], str(error)


def batches(shards: Sequence[Shard], batch_size: int, num_workers: int) -> Iterator[list[tuple[Work, Tensor | str]]]:
    """Load all images in order, in batches that never span two shards."""
    work: list[Work] = []
    places: list[list[int]] = []
    for shard in shards:
        for start in range(0, len(shard.work), batch_size):
            batch = shard.work[start : start + batch_size]
            places.append([*range(len(work), len(work) + len(batch))])
            work += batch
    return iter(
        DataLoader(
            _Images(work),
            batch_sampler=places,
            num_workers=num_workers,
            collate_fn=list,
            worker_init_fn=end_with_parent,
        )
    )
