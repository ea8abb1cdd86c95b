"""Referring expressions on COCO images: RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO, as a table.

RefCOCO and RefCOCO+ (UNC splits): Yu et al., "Modeling Context in Referring Expressions", ECCV 2016.
RefCOCOg (UMD splits): Nagaraja et al., "Modeling Context Between Objects for Referring Expression Understanding", ECCV
2016. gRefCOCO, whose expressions have any number of targets: Liu et al., "GRES: Generalized Referring Expression
Segmentation", CVPR 2023.

`data/prepare/referring.py` makes the json of a split from the published files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from openworldsam.config_files import dataset_root
from openworldsam.data.datasets.catalog import register_dataset, set_metadata
from openworldsam.data.records.referring import ReferringRecord, load_referring

IMAGE_ROOT = "coco/train2017"


class Counts(NamedTuple):
    """Sizes of a split; a reference is an object with all its sentences. None: not published."""

    images: int
    references: int | None = None
    sentences: int | None = None


class ReferringBenchmark(NamedTuple):
    """A benchmark; its datasets are named PREFIX_SPLIT.

    Attributes:
        prefix: its name with that of the partition.
        references: the published file, below the root of all datasets; `instances.json` is beside it.
        splits: published sizes by split; "train" is for training.
        generalized: whether an expression may have several targets, or none.
    """

    prefix: str
    references: str
    splits: Mapping[str, Counts]
    generalized: bool = False

    def json_file(self, split: str) -> str:
        """Return the path of a prepared split, below the root."""
        return f"coco/annotations/{self.prefix}_{split}.json"


REFERRING: dict[str, ReferringBenchmark] = {
    "refcoco": ReferringBenchmark(
        "refcoco_unc",
        "refcoco/refs(unc).p",
        {
            "train": Counts(16_994, 42_404, 120_624),
            "val": Counts(1_500, 3_811, 10_834),
            "testA": Counts(750, 1_975, 5_657),
            "testB": Counts(750, 1_810, 5_095),
        },
    ),
    "refcoco_plus": ReferringBenchmark(
        "refcoco_plus_unc",
        "refcoco+/refs(unc).p",
        {
            "train": Counts(16_992, 42_278, 120_191),
            "val": Counts(1_500, 3_805, 10_758),
            "testA": Counts(750, 1_975, 5_726),
            "testB": Counts(750, 1_798, 4_889),
        },
    ),
    "refcocog": ReferringBenchmark(
        "refcocog_umd",
        "refcocog/refs(umd).p",
        {
            "train": Counts(21_899, 42_226, 80_512),
            "val": Counts(1_300, 2_573, 4_896),
            "test": Counts(2_600, 5_023, 9_602),
        },
    ),
    "grefcoco": ReferringBenchmark(
        "grefcoco",
        "grefcoco/grefs(unc).json",
        {"val": Counts(1_500), "testA": Counts(750), "testB": Counts(750)},
        generalized=True,
    ),
}
"""Benchmarks by the name of their preparation."""


def register() -> None:
    """Register all splits; may be called again."""
    for command, benchmark in REFERRING.items():
        tasks = ("generalized_referring" if benchmark.generalized else "referring",)
        hint = f"datasets/README.md says how to get it and COCO; `openworldsam prepare {command}` makes the json"
        for split in benchmark.splits:
            name = f"{benchmark.prefix}_{split}"
            register_dataset(name, partial(_load, name, benchmark.json_file(split), hint), (), tasks)
            set_metadata(name, evaluator_type="referring")


def _load(name: str, json_file: str, hint: str) -> list[ReferringRecord]:
    path, image_root = str(dataset_root() / json_file), str(dataset_root() / IMAGE_ROOT)
    set_metadata(name, json_file=path, image_root=image_root)
    return load_referring(path, image_root, hint=hint)
