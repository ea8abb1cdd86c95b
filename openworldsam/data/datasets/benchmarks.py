"""Facts of the benchmarks with classes other than COCO (Tables 1, 7 and 8), as tables.

A benchmark with ready labels is a row of `LABELS` or `PANOPTIC`. Each task is scored on the ground truth that its
benchmark publishes for it, so a benchmark may have several datasets. classes/*.json list classes in the order of their
contiguous ids: ids of the benchmark's own files, and the names that the released model is prompted with, stripped.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from openworldsam.config_files import dataset_root
from openworldsam.data.datasets.catalog import PanopticFiles, register_dataset, register_panoptic
from openworldsam.data.datasets.referring import REFERRING
from openworldsam.data.records.coco_json import Category
from openworldsam.data.records.instances import InstanceRecord, load_instances
from openworldsam.data.records.labels import LabelCoding, LabelRecord, load_labels

logger = logging.getLogger(__name__)

_CLASSES = Path(__file__).parent / "classes"
_README = "datasets/README.md says how to get it"


class LabelBenchmark(NamedTuple):
    """A benchmark of label images (semantic segmentation).

    Attributes:
        classes: the names of the classes 0, 1, ..., or the name of a list in classes/.
        images, labels: where the files are, from the root of all datasets; each * in `labels` stands for what the same
            * in `images` matches.
        ignored: label values that are void.
        expected: number of images.
        listed: a text file of the values that the first * may take; any by default.
        offset: label value minus class id.
        command: makes what is not for download.
        preferred: other labels, used instead if their folder exists.
    """

    classes: str | tuple[str, ...]
    images: str
    labels: str
    ignored: Sequence[int]
    expected: int
    listed: str = ""
    offset: int = 0
    command: str = ""
    preferred: str = ""


_ADE, _ADE_FULL = "ADEChallengeData2016", "ADE20K_2021_17_01"
_VOC, _CONTEXT = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
_FRAMES, _SCENES = "scannet/scannet_frames_25k", "scannet/scannetv2_val.txt"
_CONTEXT_LIST = f"{_CONTEXT}/ImageSets/Main/val.txt"
_MAKE = "openworldsam prepare {}"

LABELS: dict[str, LabelBenchmark] = {
    "ade20k_150_val": LabelBenchmark(
        "ade20k_150", f"{_ADE}/images/validation/*.jpg", f"{_ADE}/annotations/validation/*.png", (0,), 2000, offset=1
    ),
    "ade20k_847_val": LabelBenchmark(
        "ade20k_847",
        f"{_ADE_FULL}/images_detectron2/validation/*.jpg",
        f"{_ADE_FULL}/annotations_detectron2/validation/*.tif",
        (65_535,),
        2000,
        command=_MAKE.format("ade20k_847"),
    ),
    "pascal_voc_20_val": LabelBenchmark(
        (
            *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
            *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
        ),
        f"{_VOC}/JPEGImages/*.jpg",
        f"{_VOC}/SegmentationClass/*.png",
        (0, 255),  # background, and the borders of objects
        1449,
        listed=f"{_VOC}/ImageSets/Segmentation/val.txt",
        offset=1,
        preferred=f"{_VOC}/SegmentationClassAug/*.png",  # read by the released code; not in the official archive
    ),
    "pascal_context_59_val": LabelBenchmark(
        "pascal_context_59",
        f"{_CONTEXT}/JPEGImages/*.jpg",
        f"{_CONTEXT}/annotations_detectron2/pc59_val/*.png",
        (255,),
        5105,
        listed=_CONTEXT_LIST,
        command=_MAKE.format("pascal_context"),
    ),
    "pascal_context_459_val": LabelBenchmark(
        "pascal_context_459",
        f"{_CONTEXT}/JPEGImages/*.jpg",
        f"{_CONTEXT}/annotations_detectron2/pc459_val/*.tif",
        (65_535,),
        5105,
        listed=_CONTEXT_LIST,
        command=_MAKE.format("pascal_context"),
    ),
    "sun_rgbd_37_val": LabelBenchmark(
        "sun_rgbd_37",
        "sun_rgbd/image/test/img-*.jpg",
        "sun_rgbd/label37/test/img37labels-*.png",
        (0,),
        5050,
        command=_MAKE.format("sun_rgbd"),
    ),
    "scannet_20_val": LabelBenchmark(
        "scannet_20",
        f"{_FRAMES}/*/color/*.jpg",
        f"{_FRAMES}/*/label/*.png",
        range(41),  # the 20 other classes of NYU40 are void
        5436,
        listed=_SCENES,
    ),
    "scannet_40_val": LabelBenchmark(
        "scannet_40", f"{_FRAMES}/*/color/*.jpg", f"{_FRAMES}/*/label/*.png", (0,), 5436, listed=_SCENES
    ),
    "cityscapes_19_val": LabelBenchmark(
        "cityscapes_19",
        "cityscapes/leftImg8bit/val/*/*_leftImg8bit.png",
        "cityscapes/gtFine/val/*/*_gtFine_labelIds.png",
        range(34),  # the other classes are void
        500,
    ),
    "bdd10k_19_val": LabelBenchmark(
        "bdd10k_19", "bdd100k/images/10k/val/*.jpg", "bdd100k/labels/sem_seg/masks/val/*.png", (255,), 1000
    ),
}


class PanopticBenchmark(NamedTuple):
    """A benchmark in COCO's panoptic format, and the tasks that its segments are ground truth for."""

    classes: str
    files: PanopticFiles
    expected: int
    command: str
    tasks: tuple[str, ...] = ("panoptic",)


PANOPTIC: dict[str, PanopticBenchmark] = {
    "ade20k_150_panoptic_val": PanopticBenchmark(
        "ade20k_150",
        PanopticFiles(f"{_ADE}/ade20k_panoptic_val.json", f"{_ADE}/images/validation", f"{_ADE}/ade20k_panoptic_val"),
        2000,
        _MAKE.format("ade20k_150"),
    ),
    "scannet_20_panoptic_val": PanopticBenchmark(
        "scannet_20",
        PanopticFiles("scannet/scannet_panoptic_val.json", _FRAMES, "scannet/scannet_panoptic_val"),
        5436,
        _MAKE.format("scannet"),
    ),
    **{
        f"cityscapes_19_panoptic_{split}": PanopticBenchmark(
            "cityscapes_19",
            PanopticFiles(
                f"cityscapes/panoptic_{split}.json",
                f"cityscapes/leftImg8bit/{split}",
                f"cityscapes/panoptic_{split}",
                instance_ids_root=f"cityscapes/gtFine/{split}",
            ),
            expected,
            _MAKE.format("cityscapes"),
            ("panoptic", "instance", "cityscapes"),
        )
        for split, expected in (("val", 500), ("train", 2975))  # train: for the last row of Table 8
    },
    "bdd10k_40_panoptic_val": PanopticBenchmark(
        "bdd10k_panoptic_40",
        PanopticFiles("bdd100k/panoptic_val.json", "bdd100k/images/10k/val", "bdd100k/panoptic_val"),
        1000,
        _MAKE.format("bdd10k"),
        ("panoptic", "instance"),
    ),
}

ADE20K_INSTANCE = "ade20k_100_instance_val"
"""The only benchmark of COCO instances; it has its own class names, and no overlaps."""

_EXPRESSIONS = {
    f"{benchmark.prefix}_{split}": (command, benchmark, split)
    for command, benchmark in REFERRING.items()
    for split in benchmark.splits
    if split != "train"
}

EXPECTED_IMAGES: dict[str, int] = {
    "coco_2017_val_panoptic_openworldsam": 5000,
    **{name: benchmark.splits[split].images for name, (_, benchmark, split) in _EXPRESSIONS.items()},
    ADE20K_INSTANCE: 2000,
    **{name: benchmark.expected for name, benchmark in LABELS.items()},
    **{name: benchmark.expected for name, benchmark in PANOPTIC.items()},
}
"""Number of images of each benchmark but Shapes, from Table 7 or the publishers."""

PROMPT_CAPS: dict[str, int] = {
    "coco_2017_val_panoptic_openworldsam": 20,
    "ade20k_150_panoptic_val": 20,
    "ade20k_150_val": 20,  # its published mIoU is with the panoptic prompts
    "scannet_20_panoptic_val": 18,
}
"""Most prompts per image of the released code, where it has a limit."""

SOFTMAX_CLASSES: dict[str, int] = {"sun_rgbd_37_val": 38, "scannet_40_val": 41}
"""Number of classes in the softmax of the released code, where it counts one named "background"."""

COMMANDS: dict[str, str] = {
    "coco_2017_val_panoptic_openworldsam": "",
    **{name: _MAKE.format(command) for name, (command, *_) in _EXPRESSIONS.items()},
    ADE20K_INSTANCE: _MAKE.format("ade20k_150"),
    **{name: benchmark.command for name, benchmark in LABELS.items()},
    **{name: benchmark.command for name, benchmark in PANOPTIC.items()},
}
"""Command that converts each benchmark's downloads; empty if they are read as they are."""


def read_classes(source: str | tuple[str, ...]) -> tuple[Category, ...]:
    """Return the classes of classes/SOURCE.json or of the given names, in the order of their contiguous ids."""
    if isinstance(source, str):
        return tuple(Category(c["id"], c["name"], bool(c["isthing"])) for c in class_entries(source))
    return tuple(Category(index, name, False) for index, name in enumerate(source))


def class_entries(name: str) -> list[dict[str, Any]]:
    """Return the entries of classes/NAME.json: id, name, isthing, and what only preparation needs."""
    return json.loads((_CLASSES / f"{name}.json").read_text(encoding="utf-8"))["classes"]


def register() -> None:
    """Register all benchmarks of this module; may be called again."""
    for name, labels in LABELS.items():
        register_dataset(name, partial(_load_labels, name), read_classes(labels.classes), ("semantic",))
    for name, panoptic in PANOPTIC.items():
        classes = read_classes(panoptic.classes)
        register_panoptic(name, panoptic.files, classes, tasks=panoptic.tasks, hint=hint(name))
    classes = read_classes("ade20k_instance_100")
    register_dataset(ADE20K_INSTANCE, partial(_load_ade20k_instances, classes), classes, ("instance",))


def hint(name: str) -> str:
    """Say what to do about a missing file of a benchmark."""
    return f"{_README}; `{COMMANDS[name]}` makes what is not for download" if COMMANDS[name] else _README


def matching(root: Path, pattern: str) -> list[Path]:
    """List the files of a pattern whose suffix may be in any case, without hidden ones, as macOS adds them; sorted."""
    stem, suffix = pattern.rsplit(".", 1)
    any_case = "".join(f"[{letter}{letter.upper()}]" for letter in suffix)
    return sorted(path for path in root.glob(f"{stem}.{any_case}") if not path.name.startswith("."))


def find_pairs(benchmark: LabelBenchmark, root: Path, advice: str = "") -> list[tuple[Path, Path]]:
    """Return the (image, label image) pairs of a benchmark by name; images on its list need not exist.

    Raises:
        FileNotFoundError: the list is missing; the message ends with the advice.
        ValueError: the list is damaged.
    """
    patterns = [benchmark.images]
    if benchmark.listed:
        try:
            lines = (root / benchmark.listed).read_text(encoding="utf-8-sig").split()
        except FileNotFoundError:
            raise FileNotFoundError(f"{root / benchmark.listed} not found. {advice}".rstrip()) from None
        except UnicodeDecodeError:
            raise ValueError(f"{root / benchmark.listed} is no text") from None
        patterns = [benchmark.images.replace("*", line, 1) for line in dict.fromkeys(lines)]
    label_pattern = benchmark.labels
    if benchmark.preferred and (root / benchmark.preferred).parent.is_dir():
        label_pattern = benchmark.preferred
    stars = re.compile(re.escape(benchmark.images).replace(r"\*", "([^/]*)"), re.IGNORECASE)
    pairs = []
    for pattern in patterns:
        for image in matching(root, pattern) if "*" in pattern else [root / pattern]:
            match = stars.fullmatch(image.relative_to(root).as_posix())
            if not match:
                raise ValueError(f"{root / benchmark.listed} has a line that is no name: it gives {image}")
            labels = label_pattern
            for part in match.groups():
                labels = labels.replace("*", part, 1)
            pairs.append((image, root / labels))
    return pairs


def _load_labels(name: str) -> list[LabelRecord]:
    benchmark, root = LABELS[name], dataset_root()
    coding = LabelCoding.of(read_classes(benchmark.classes), benchmark.ignored, benchmark.offset)
    records = load_labels(name, find_pairs(benchmark, root, hint(name)), coding, root / benchmark.images, hint(name))
    if len(records) != benchmark.expected:
        logger.warning("%s has %d images, %d are published", name, len(records), benchmark.expected)
    return records


def _load_ade20k_instances(categories: Sequence[Category]) -> list[InstanceRecord]:
    root, advice = dataset_root() / _ADE, hint(ADE20K_INSTANCE)
    json_file, images = root / "ade20k_instance_val.json", root / "images/validation"
    return load_instances(json_file, images, categories=categories, hint=advice)
