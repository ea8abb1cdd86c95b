"""The work that fills a cache: images and prompts that it lacks, divided into shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from torch import Tensor

from openworldsam.data.feature_cache.index import ImageId
from openworldsam.data.feature_cache.reader import FeatureCache
from openworldsam.data.loader import training_dataset
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.preprocessing import to_tensor
from openworldsam.data.records import Record
from openworldsam.utils.workers import image_loader


class Work(NamedTuple):
    """An image of DATASETS.TRAIN: its record, without ground truth, and all prompts that training may ask of it."""

    record: Record
    prompts: tuple[str, ...]


def wanted_prompts(cfg: CfgNode) -> list[Work]:
    """List the images of DATASETS.TRAIN that have prompts; two datasets may use one id for different images."""
    dataset = training_dataset(cfg)
    assert isinstance(dataset.mapper, DatasetMapper)
    wanted: dict[tuple[ImageId, str], tuple[Record, dict[str, None]]] = {}
    for record in dataset.records:
        image = record["image_id"], record["file_name"]
        _, texts = wanted.setdefault(image, (record.without_ground_truth(), {}))
        texts.update(dict.fromkeys(dataset.texts(record) or ()))
    return [Work(record, tuple(texts)) for record, texts in wanted.values() if texts]


def plan(wanted: Sequence[Work], cache: FeatureCache, shard_images: int) -> list[list[Work]]:
    """Divide images among shards, and return the images of each that may lack something; none if it is complete.

    Images of one id are always among them, as only their pixels tell which of them the cache holds.
    Borders between shards depend on the dataset alone, not on the cache: they are the same for every part and run.
    """
    owners = Counter(work.record["image_id"] for work in wanted)

    def may_lack(work: Work) -> bool:
        image_id = work.record["image_id"]
        return owners[image_id] > 1 or any(cache.missing(image_id, work.prompts, Path(work.record["file_name"]).name))

    starts = range(0, len(wanted), shard_images)
    return [list(filter(may_lack, wanted[start : start + shard_images])) for start in starts]


def batches(
    shards: Sequence[Sequence[Work]], batch_size: int, num_workers: int
) -> Iterator[list[tuple[Work, Tensor | str]]]:
    """Load all images in order, in batches within a shard; the reason takes the place of pixels that cannot be read."""
    parts: Any = [shard[i : i + batch_size] for shard in shards for i in range(0, len(shard), batch_size)]
    return iter(image_loader(parts, batch_size=None, num_workers=num_workers, collate_fn=_read))


def _read(batch: Sequence[Work]) -> list[tuple[Work, Tensor | str]]:
    read: list[tuple[Work, Tensor | str]] = []
    for work in batch:
        try:
            read.append((work, to_tensor(work.record.read_image())))
        except (ValueError, OSError) as error:
            read.append((work, str(error)))
    return read
