"""Training batches whose content depends on the seed and the position alone.

Position n is the n-th image that training sees, counted over all processes. Its content is independent of the number
of workers and processes and of interruptions, so resuming means starting at a position.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog
from torch.utils.data import Dataset

from openworldsam.data.datasets.catalog import load_records
from openworldsam.data.feature_cache import FeatureCache
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.negatives import Negatives
from openworldsam.data.records import Record
from openworldsam.utils.workers import image_loader

logger = logging.getLogger(__name__)


class TrainingDataset(Dataset[dict[str, Any]]):
    """Shuffled epochs over records, indexed by position.

    A record that is unreadable, or turns out to have nothing to learn from, is replaced by another one, also drawn from
    the position. Only the unreadable ones are faults.

    Args:
        records: of a dataset, at least one.
        mapper: reads a record.
        seed: of the order and of all random choices of the mapper.
        max_bad: unreadable records in a row after which the dataset as a whole must be wrong.
        num_empty: images of the dataset that are not among the records, as they have nothing to learn from.

    Attributes:
        cache: if set, adds the outputs of the frozen encoders to every image.
    """

    def __init__(
        self, records: Sequence[Record], mapper: DatasetMapper, seed: int, *, max_bad: int = 20, num_empty: int = 0
    ) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed
        self.max_bad, self.num_empty = max_bad, num_empty
        self.cache: FeatureCache | None = None
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def sample_records(self) -> list[Record]:
        """Return the records to list for an estimate of all prompts: all, or every n-th (`Record.listing_step`)."""
        return [record for index, record in enumerate(self.records) if index % record.listing_step == 0]

    def texts(self, record: Record) -> list[str] | None:
        """List every prompt that a visit of a record may draw; None, with a warning, if it is unreadable."""
        try:
            return self.mapper.texts(record)
        except (ValueError, OSError) as error:
            logger.warning("skipped %s: %s", record["file_name"], error)
            return None

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the image at a position, with `skipped`, the unreadable files that it replaces.

        Raises:
            ValueError: `max_bad` records in a row were unreadable, or no record of all can be used.
        """
        epoch, place = divmod(position, len(self.records))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.records))
        generator = np.random.default_rng((self.seed, epoch, place + 1))  # 0 is the order's own seed
        skipped: list[str] = []
        reason: Exception | None = None
        for index in self._candidates(int(self._order[place]), generator):
            record = self.records[index]
            try:
                mapped = self.mapper(record, generator)
            except (ValueError, OSError) as error:
                logger.warning("skipped %s: %s", record["file_name"], error)
                reason = error
                skipped.append(record["file_name"])
                if len(skipped) == self.max_bad:
                    break
                continue
            if mapped is not None:
                # outside the try: a damaged cache is not a damaged image
                attached = self.cache.attach(mapped) if self.cache else mapped
                return {**attached, "skipped": skipped}
        if len(skipped) == self.max_bad:
            raise ValueError(f"{self.max_bad} images in a row were unreadable, the last {skipped[-1]}") from reason
        unreadable = f"{len(skipped)} are unreadable" + (f" (the last {skipped[-1]})" if skipped else "")
        raise ValueError(
            f"none of the {len(self.records)} images can be learnt from: {unreadable}, the others have no object"
        ) from reason

    def _candidates(self, first: int, generator: np.random.Generator) -> Iterator[int]:
        """Yield an index, and, if it is of no use, all others in an order that is drawn then."""
        yield first
        yield from (index for index in generator.permutation(len(self.records)).tolist() if index != first)


def training_batches(
    dataset: TrainingDataset, *, batch_size: int, start: int, rank: int, world_size: int, num_workers: int
) -> Iterator[list[dict[str, Any]]]:
    """Return an iterator over endless batches of one process.

    Args:
        dataset: indexed by position.
        batch_size: images per step of this process.
        start: first position, counted over all processes.
        rank, world_size: index of this process, and number of processes.
        num_workers: DataLoader workers; 0 reads in this process.
    """
    return iter(
        image_loader(
            dataset,
            batch_size=batch_size,
            sampler=itertools.count(start + rank, world_size),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
    )


def training_dataset(cfg: CfgNode) -> TrainingDataset:
    """Join the registered datasets of DATASETS.TRAIN, which must share a vocabulary.

    Raises:
        ValueError: the vocabularies differ, or there is no image with an object.
    """
    vocabularies = {tuple(getattr(MetadataCatalog.get(n), "vocabulary", ())) for n in cfg.DATASETS.TRAIN}
    if len(vocabularies) != 1:
        raise ValueError(f"DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} must name datasets of one vocabulary")
    most = cfg.DATASETS.TRAIN_IMAGES or None
    listed = [record for name in cfg.DATASETS.TRAIN for record in load_records(name)[:most]]
    if not listed:
        raise ValueError(f"the training set {list(cfg.DATASETS.TRAIN)} has no image")
    records = [record for record in listed if not record.is_empty]
    if not records:
        raise ValueError(f"none of the {len(listed)} images of {list(cfg.DATASETS.TRAIN)} has an object but crowds")
    if len(records) < len(listed):
        logger.info("%d of %d images have no object to learn from", len(listed) - len(records), len(listed))
    vocabulary = vocabularies.pop()
    if not vocabulary and not all(record.is_referring for record in records):
        raise ValueError(f"{list(cfg.DATASETS.TRAIN)} has no vocabulary: its metadata need vocabulary and is_thing")
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    # serialised: of Python objects, every worker would end up with a copy
    records = DatasetFromList(records, copy=False)
    negatives = None
    if cfg.INPUT.NEGATIVES:
        negatives = Negatives(cfg.INPUT.NEGATIVES, vocabulary, getattr(metadata, "groups", ()), records)
    is_thing = tuple(getattr(metadata, "is_thing", ()))
    mapper = DatasetMapper(cfg, class_names=vocabulary, is_thing=is_thing, negatives=negatives)
    return TrainingDataset(records, mapper, cfg.SEED, num_empty=len(listed) - len(records))
