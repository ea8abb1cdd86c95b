"""COCO 2017 panoptic: its 133 classes and where its files are."""

from __future__ import annotations

import re

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from openworldsam.data.datasets.catalog import PanopticFiles, register_panoptic
from openworldsam.data.records.coco_json import Category

CATEGORIES: tuple[Category, ...] = tuple(
    # "grass-merged" becomes grass; the names stay different
    Category(c["id"], re.sub("-(other|merged|stuff)", "", c["name"]), bool(c["isthing"]), tuple(c["color"]))
    for c in COCO_CATEGORIES
)
"""The 133 classes of COCO panoptic, 80 things first; the position is the contiguous class id."""

COCO_STUFF = frozenset(category.name for category in CATEGORIES if not category.is_thing)
"""The 53 stuff names of COCO; panoptic segmentation treats them as stuff unless told otherwise."""

HINT = "datasets/README.md says how to get COCO; `python datasets/prepare.py coco` makes what is not for download"


def _split(split: str, list_name: str) -> PanopticFiles:
    return PanopticFiles(
        json=f"coco/annotations/{list_name}.json",
        image_root=f"coco/{split}2017",
        panoptic_root=f"coco/panoptic_{split}2017",
        semseg_root=f"coco/panoptic_semseg_{split}2017",
        instances_json=f"coco/annotations/instances_{split}2017.json",
    )


DATASETS: dict[str, PanopticFiles] = {
    # the images of the paper, about 104,000: none of RefCOCOg's validation images
    "coco_2017_train_panoptic_openworldsam": _split("train", "panoptic_train2017_filtrefgumdval_filtvlp"),
    "coco_2017_train_panoptic_full": _split("train", "panoptic_train2017"),
    "coco_2017_val_panoptic_openworldsam": _split("val", "panoptic_val2017"),
}


def register() -> None:
    """Register COCO's three datasets; may be called again."""
    for name, files in DATASETS.items():
        register_panoptic(name, files, CATEGORIES, hint=HINT)
