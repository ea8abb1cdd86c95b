"""RefCOCOg, UMD split: objects of COCO images, each with the sentences that refer to it.

Nagaraja et al., "Modeling Context Between Objects for Referring Expression Understanding", ECCV 2016.
`data/prepare/refcocog.py` makes the json of a split from the published files.
"""

from __future__ import annotations

from functools import partial

from openworldsam.data.datasets.catalog import dataset_root, register_dataset, set_metadata
from openworldsam.data.datasets.coco import CATEGORIES
from openworldsam.data.records.referring import ReferringRecord, load_referring

IMAGE_ROOT = "coco/train2017"
DATASETS = {
    "refcocog_umd_train": "coco/annotations/refcocog_umd_train.json",
    "refcocog_umd_val": "coco/annotations/refcocog_umd_val.json",
}
HINT = "datasets/README.md says how to get RefCOCOg and COCO; `python datasets/prepare.py refcocog` makes the json"


def register() -> None:
    """Register both splits; may be called again."""
    for name, json_file in DATASETS.items():
        register_dataset(name, partial(_load, name, json_file), (), ("referring",))
        set_metadata(name, evaluator_type="referring")


def _load(name: str, json_file: str) -> list[ReferringRecord]:
    path, image_root = str(dataset_root() / json_file), str(dataset_root() / IMAGE_ROOT)
    set_metadata(name, json_file=path, image_root=image_root)
    return load_referring(path, image_root, categories=CATEGORIES, hint=HINT)
