"""COCO 2017 panoptic: its 133 classes and where its files are."""

from __future__ import annotations

import re

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from openworldsam.data.datasets.catalog import PanopticFiles, register_panoptic
from openworldsam.data.records.coco_json import Category

GROUPS = {
    "person": (1,),
    "vehicle": range(2, 10),
    "outdoor": range(10, 16),
    "animal": range(16, 26),
    "accessory": range(27, 34),
    "sports": range(34, 44),
    "kitchen": range(44, 52),
    "food": range(52, 62),
    "furniture": range(62, 72),
    "electronic": range(72, 78),
    "appliance": range(78, 84),
    "indoor": range(84, 91),
    "textile": (92, 93, 109, 141, 168, 200),
    "building": (95, 128, 151, 166, 197),
    "raw-material": (100, 195),
    "furniture-stuff": (107, 112, 130, 133, 156, 161, 188, 189),
    "floor": (118, 190),
    "plant": (119, 184, 193),
    "food-stuff": (122, 196),
    "ground": (125, 144, 145, 147, 149, 154, 159, 191, 194),
    "structural": (138, 185),
    "water": (148, 155, 178),
    "wall": (171, 175, 176, 177, 199),
    "window": (180, 181),
    "ceiling": (186,),
    "sky": (187,),
    "solid": (192, 198),
}
"""Category ids of COCO's supercategories."""

_GROUP = {id_: group for group, ids in GROUPS.items() for id_ in ids}

CATEGORIES: tuple[Category, ...] = tuple(
    Category(
        c["id"],
        re.sub("-(other|merged|stuff)", "", c["name"]),  # "grass-merged" becomes grass; the names stay different
        bool(c["isthing"]),
        tuple(c["color"]),
        _GROUP[c["id"]],
    )
    for c in COCO_CATEGORIES
)
"""The 133 classes of COCO panoptic, 80 things first; the position is the contiguous class id."""

COCO_STUFF = frozenset(category.name for category in CATEGORIES if not category.is_thing)
"""The 53 stuff names of COCO; panoptic segmentation treats them as stuff unless told otherwise."""

HINT = "datasets/README.md says how to get COCO; `openworldsam prepare coco` makes what is not for download"


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
    # the other images of the full list, to calibrate on
    "coco_2017_train_panoptic_held_out": _split("train", "panoptic_train2017_held_out"),
    "coco_2017_val_panoptic_openworldsam": _split("val", "panoptic_val2017"),
}


def register() -> None:
    """Register COCO's datasets; may be called again."""
    for name, files in DATASETS.items():
        register_panoptic(name, files, CATEGORIES, hint=HINT)
