"""Label images of ADE20K-2021, PASCAL Context and ScanNet, from the formats that they publish.

Shapes: H, W image size.
"""

from __future__ import annotations

import csv
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import scipy.io
from PIL import Image

from openworldsam.data.datasets.benchmarks import LABELS, class_entries, find_pairs, read_classes
from openworldsam.data.prepare.plan import Plan, require_count, work_through
from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.labels import MAX_LABEL, read_labels
from openworldsam.utils.files import find_files, regular_file, save_atomically
from openworldsam.utils.launch import say


def save_labels(labels: np.ndarray, path: Path) -> None:
    """Write a label image atomically: uint8 or uint16 [H, W], TIFF if the path ends in .tif, otherwise PNG."""
    kind = {"format": "TIFF", "compression": "tiff_lzw"} if path.suffix == ".tif" else {"format": "PNG"}
    image = Image.fromarray(labels)
    save_atomically(path, lambda partial: image.save(partial, **kind))


def make_ade20k_847(plan: Plan, *, short_side: int) -> None:
    """Make ADE20K-847's images and label images from the 2021 release.

    Args:
        plan: folder and processes.
        short_side: larger images are scaled down to it, in pixels; 0 keeps their size. Published scores use 512.

    Raises:
        OSError, ValueError: an image is missing, damaged or cannot be written, or there are too few.
    """
    benchmark = LABELS["ade20k_847_val"]
    folder = plan.root / "ADE20K_2021_17_01/images/ADE/validation"
    images = [path for path in find_files(folder, (".jpg",)) if path.name.startswith("ADE_val_")]
    require_count(len(images), benchmark.expected, plan, "validation images of ADE20K-2021")
    jobs = [
        (image, *(plan.root / pattern.replace("*", image.stem) for pattern in (benchmark.images, benchmark.labels)))
        for image in images
    ]
    work_through(partial(_convert_ade20k, short_side=short_side), jobs, plan, "images of ADE20K-847")
    say(f"{len(jobs)} images of ADE20K-847")


def ade20k_classes(colours: np.ndarray) -> np.ndarray:
    """Decode a *_seg.png.

    Args:
        colours: uint8 [H, W, 3]; the index of a class is 256 (red / 10) + green.

    Returns:
        class ids 0..846, uint16 [H, W], 65535 where there is none of these.
    """
    index = colours[..., 0].astype(np.int64) // 10 * 256 + colours[..., 1]
    return _ade20k_table()[index]


@lru_cache
def _ade20k_table() -> np.ndarray:
    table = np.full(26 * 256, MAX_LABEL, np.uint16)
    for entry in class_entries("ade20k_847"):
        table[entry["index"]] = entry["id"]
    return table


def _convert_ade20k(job: tuple[Path, Path, Path], short_side: int) -> str | None:
    source, image_path, labels_path = job
    if labels_path.exists() and image_path.exists():
        return None
    try:
        image = read_image(source)
        labels = ade20k_classes(read_image(source.with_name(f"{source.stem}_seg.png")))
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    height, width = image.shape[:2]
    if labels.shape != (height, width):
        return f"{source} is {width} x {height}, its labels are {labels.shape[1]} x {labels.shape[0]}"
    if 0 < short_side < (shorter := min(height, width)):
        # as published: OpenCV without antialiasing, and Pillow's default JPEG quality
        size = (round(width / shorter * short_side), round(height / shorter * short_side))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    save_atomically(image_path, lambda partial: Image.fromarray(image).save(partial, format="JPEG"))
    save_labels(labels, labels_path)
    return None


def make_pascal_context(plan: Plan) -> None:
    """Make Context-59's and Context-459's label images from the LabelMaps of the 459 classes.

    Raises:
        OSError, ValueError: a LabelMap is missing, damaged or has an unknown value, or there are too few.
    """
    few, many = LABELS["pascal_context_59_val"], LABELS["pascal_context_459_val"]
    advice = "It is in VOC2010's trainval archive; datasets/README.md says where that is"
    lists = [[labels for _, labels in find_pairs(benchmark, plan.root, advice)] for benchmark in (few, many)]
    require_count(len(lists[0]), few.expected, plan, "listed validation images of VOC2010")
    folder = plan.root / "VOCdevkit/VOC2010/trainval"
    jobs = [(folder / f"{f.stem}.mat", f, m) for f, m in zip(*lists, strict=True)]
    work_through(_convert_context, jobs, plan, "LabelMaps of PASCAL Context")
    say(f"{len(jobs)} LabelMaps of PASCAL Context")


def _convert_context(job: tuple[Path, Path, Path]) -> str | None:
    source, few, many = job
    if few.exists() and many.exists():
        return None
    names = [c.name for c in read_classes("pascal_context_459")]
    try:
        labels = np.asarray(scipy.io.loadmat(str(source))["LabelMap"]).astype(np.int64)
    except FileNotFoundError:
        return f"{source} not found"
    except Exception as error:  # scipy raises many kinds for a damaged file
        return f"{source} is no LabelMap: {error}"
    if labels.ndim != 2 or labels.min() < 0 or labels.max() > len(names):
        return f"{source} has the labels {labels.min()} to {labels.max()}, known are 0 to {len(names)}"
    kept = np.full(len(names) + 1, 255, np.uint8)
    for c in read_classes("pascal_context_59"):
        kept[names.index(c.name) + 1] = c.id
    save_labels(kept[labels], few)
    save_labels(np.where(labels > 0, labels - 1, MAX_LABEL).astype(np.uint16), many)
    return None


def make_scannet_labels(plan: Plan, table: Path) -> None:
    """Make label/ and instance/ of frames that were extracted from ScanNet's scans, as in scannet_frames_25k.

    Args:
        plan: folder and processes; the scenes have color/, label-filt/ (raw ids) and instance-filt/ (object numbers).
        table: scannetv2-labels.combined.tsv, with the NYU40 class of each raw id.

    Raises:
        OSError, ValueError: a file is missing, damaged or has an unknown value, or there are too few.
    """
    benchmark = LABELS["scannet_20_val"]
    pairs = find_pairs(benchmark, plan.root, "It is in ScanNet's repository; datasets/README.md says where")
    require_count(len(pairs), benchmark.expected, plan, "frames of ScanNet's validation scenes")
    convert = partial(_convert_scannet, classes=read_scannet_table(table))
    work_through(convert, [labels for _, labels in pairs], plan, "label images of ScanNet")
    say(f"{len(pairs)} label and instance images of ScanNet")


def read_scannet_table(path: Path) -> dict[int, int]:
    """Read the NYU40 class of each raw id of ScanNet.

    Raises:
        FileNotFoundError, ValueError: the file is missing or in another format.
    """
    with regular_file(path).open(encoding="utf-8", newline="") as file:
        try:
            return {int(row["id"]): int(row["nyu40id"]) for row in csv.DictReader(file, delimiter="\t")} | {0: 0}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not scannetv2-labels.combined.tsv: {error}") from None


def _convert_scannet(target: Path, classes: dict[int, int]) -> str | None:
    scene, name = target.parents[1], target.name
    if target.exists() and (scene / "instance" / name).exists():
        return None
    try:
        raw, numbers = read_labels(scene / "label-filt" / name), read_labels(scene / "instance-filt" / name)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    values, inverse = np.unique(raw, return_inverse=True)
    if unknown := [value for value in values.tolist() if value not in classes]:
        return f"{scene / 'label-filt' / name} has the raw ids {unknown}, which are not in the table"
    if raw.shape != numbers.shape:
        return f"{scene / 'label-filt' / name} and its instance image differ in size: {raw.shape}, {numbers.shape}"
    labels = np.array([classes[value] for value in values.tolist()], np.uint16)[inverse].reshape(raw.shape)
    # as ScanNet's converter numbers them: each class from 1, and the pixels of no object (0) as if they were one
    instances, numbered = np.zeros(raw.shape, np.uint16), Counter[int]()
    for number in np.unique(numbers).tolist():
        label = int(labels[numbers == number][0])
        numbered[label] += 1
        instances[numbers == number] = label * 1000 + numbered[label]
    save_labels(instances, scene / "instance" / name)
    save_labels(labels.astype(np.uint8), target)
    return None
