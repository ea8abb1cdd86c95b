"""Register datasets in Detectron2's catalogs, and load their records.

A function in the DatasetCatalog returns records; one that a user registers may return Detectron2's plain dicts. The
MetadataCatalog has vocabulary, is_thing, groups (such as COCO's supercategories) and category_ids (those of the
dataset's own files), an entry per contiguous class id each, and tasks, on which a dataset is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from openworldsam.config_files import dataset_root
from openworldsam.data.records import PanopticRecord, Record, as_record
from openworldsam.data.records.coco_json import Category
from openworldsam.data.records.labels import void_label
from openworldsam.data.records.panoptic import load_panoptic

logger = logging.getLogger(__name__)

SEGMENTATION = ("panoptic", "instance", "semantic")
"""Tasks on which a dataset with panoptic ground truth can be scored."""
VOID = 255
"""Label of pixels without a class, in semantic PNGs."""


def load_records(name: str) -> list[Record]:
    """Return the records of a registered dataset.

    Raises:
        KeyError: no such dataset.
        FileNotFoundError: its list of images is missing, or all of its images are.
        ValueError: its list of images is damaged, or a dict is of no known format.
    """
    return [as_record(entry) for entry in DatasetCatalog.get(name)]


def check_registered(names: Iterable[str]) -> None:
    """Raise ValueError if a dataset of one of the names is not registered."""
    known = DatasetCatalog.list()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown datasets {unknown}; datasets/README.md lists those that are registered")


def one_class_remark(name: str) -> str | None:
    """Say that a dataset's mIoU means nothing, where it has one class and its other pixels are of none."""
    metadata = MetadataCatalog.get(name)
    if "semantic" not in getattr(metadata, "tasks", ()) or len(getattr(metadata, "vocabulary", ())) != 1:
        return None
    return (
        f"every pixel that counts for the mIoU of {name} is of its only class, {metadata.vocabulary[0]!r}, so any "
        "prediction is right: make the other pixels a class too, in place of ignoring them"
    )


def register_dataset(
    name: str, load: Callable[[], Sequence[Record]], categories: Sequence[Category], tasks: Sequence[str]
) -> None:
    """Put a dataset into Detectron2's catalogs, in place of one of the same name.

    Args:
        name: in the catalogs.
        load: returns its records.
        categories: its classes in the order of their contiguous ids; none for referring expressions.
        tasks: on which it is scored.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    classes = {"vocabulary": [c.name for c in categories], "is_thing": [c.is_thing for c in categories]}
    classes |= {"category_ids": [c.id for c in categories], "groups": [c.group for c in categories]}
    set_metadata(name, **classes, tasks=tuple(tasks))


def set_metadata(name: str, **entries: object) -> None:
    """Set entries of a dataset's metadata.

    Detectron2's own setter would refuse to change a value, such as a path after the root has changed.
    """
    vars(MetadataCatalog.get(name)).update(entries)


class PanopticFiles(NamedTuple):
    """Paths of a panoptic dataset, relative to `dataset_root` or absolute.

    semseg_root: contiguous class ids as PNGs; `openworldsam prepare coco` makes them. instances_json: COCO's own
    instances. Both are for Detectron2's evaluators; ours use the panoptic segments. instance_ids_root: Cityscapes' own
    ground truth, for its AP.
    """

    json: str
    image_root: str
    panoptic_root: str
    semseg_root: str | None = None
    instances_json: str | None = None
    instance_ids_root: str | None = None


def register_panoptic(
    name: str,
    files: PanopticFiles,
    categories: Sequence[Category],
    *,
    tasks: Sequence[str] = SEGMENTATION,
    hint: str = "",
) -> None:
    """Put a dataset in COCO's panoptic format into Detectron2's catalogs, in place of one of the same name.

    The metadata also have what Detectron2's COCOPanopticEvaluator and SemSegEvaluator need; the paths (panoptic_json,
    panoptic_root, image_root, sem_seg_root, json_file) are set when the dataset is loaded.

    Args:
        name: in the catalogs.
        files: its paths.
        categories: its classes in the order of their contiguous ids.
        tasks: on which it is scored.
        hint: what to do about a missing file; ends the error message.
    """
    register_dataset(name, partial(_load_panoptic, name, files, categories, hint), categories, tasks)
    names, colors = [c.name for c in categories], [list(c.color) for c in categories]
    contiguous = {c.id: index for index, c in enumerate(categories)}
    set_metadata(
        name,
        # Detectron2's "standard" panoptic layout: one numbering for things and stuff, and the full lists for both
        thing_classes=names,
        stuff_classes=names,
        thing_colors=colors,
        stuff_colors=colors,
        thing_dataset_id_to_contiguous_id={c.id: contiguous[c.id] for c in categories if c.is_thing},
        # every class, not stuff alone: SemSegEvaluator looks all of them up here
        stuff_dataset_id_to_contiguous_id=contiguous,
        evaluator_type="coco_panoptic_seg",
        ignore_label=void_label(len(names)),
        label_divisor=1000,
    )


def _load_panoptic(name: str, files: PanopticFiles, categories: Sequence[Category], hint: str) -> list[PanopticRecord]:
    root = dataset_root()
    paths: Any = [str(root / file) if file else None for file in files]
    json_file, image_root, panoptic_root, semseg_root, instances_json, instance_ids_root = paths
    set_metadata(name, panoptic_json=json_file, image_root=image_root, panoptic_root=panoptic_root)
    set_metadata(name, sem_seg_root=semseg_root, json_file=instances_json)
    records = load_panoptic(json_file, image_root, panoptic_root, semseg_root, categories=categories, hint=hint)
    if instance_ids_root and not Path(instance_ids_root).is_dir():
        logger.warning("%s not found, so Cityscapes' AP ignores caravans and trailers as void", instance_ids_root)
    elif instance_ids_root:
        for record in records:
            image = record["file_name"].removeprefix(image_root).replace("_leftImg8bit", "_gtFine_instanceIds")
            record["instance_ids_file_name"] = f"{instance_ids_root}{image}"
    return records
