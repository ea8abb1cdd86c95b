"""Panoptic jsons and PNGs in COCO's format for ADE20K, ScanNet, Cityscapes and BDD10K, and ADE20K's instance json.

Each benchmark has a reader, from an image's source files to its regions; the rest is shared. A json is written last and
only if every image could be read, so it implies that all PNGs exist. An existing json is left alone.

Shapes: H, W image size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openworldsam.data.datasets.benchmarks import ADE20K_INSTANCE, LABELS, PANOPTIC, find_pairs, matching, read_classes
from openworldsam.data.prepare.labels import make_scannet_labels
from openworldsam.data.prepare.plan import Plan, require_count, work_through
from openworldsam.data.preprocessing import open_image, read_image, upright, upright_size
from openworldsam.data.records.labels import read_labels
from openworldsam.data.records.rle import encode_mask
from openworldsam.utils.files import save_json, save_png
from openworldsam.utils.launch import say
from openworldsam.utils.panoptic_png import id2rgb

_STEP = 1000  # an object's value in Cityscapes and ScanNet is 1000 * class + number


class Region(NamedTuple):
    """A region of an image: category id in the dataset's own files, and whether it is a crowd."""

    category_id: int
    iscrowd: bool = False


class Job(NamedTuple):
    """An image: its path, its file names in the json, and the source files of its regions."""

    image: Path
    image_name: str
    png_name: str
    sources: tuple[Path, ...]


Layer = tuple[np.ndarray, dict[int, Region]]
"""A value for every pixel, int [H, W], and the region of each value; other pixels show the layer below, or are void."""
Reader = Callable[[Sequence[Path]], list[Layer]]
"""From an image's source files to its layers, the lowest first. A value means one region in all of them."""


def read_ade20k(sources: Sequence[Path]) -> list[Layer]:
    """Read stuff from annotations (class + 1), and over it things from annotations_instance (red class, green object).

    As in Mask2Former's script, stuff keeps the area that it has below the things, and its entry if it is all covered.
    Pixels of a thing class that belong to no object are void.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, of another size, or has an unknown value.
    """
    labels, colours = read_labels(sources[0]).astype(np.int64), read_image(sources[1]).astype(np.int64)
    _check_same_size(labels, colours, sources)
    stuff = {c.id + 1: Region(c.id) for c in read_classes("ade20k_150") if not c.is_thing}
    _check_range(labels, 150, sources[0])
    return [(labels, stuff), _ade20k_objects(colours, sources[1])]


def read_ade20k_instances(sources: Sequence[Path]) -> list[Layer]:
    """Read only the things of `read_ade20k`. Raises as it does."""
    return [_ade20k_objects(read_image(sources[1]).astype(np.int64), sources[1])]


def _ade20k_objects(colours: np.ndarray, path: Path) -> Layer:
    """Objects with values from 1000 up, which no stuff class has."""
    classes = read_classes("ade20k_instance_100")
    red, green = colours[..., 0], colours[..., 1]
    _check_range(red, len(classes), path)
    objects = np.where((red > 0) & (green > 0), red * _STEP + green, 0)
    return objects, {v: Region(classes[v // _STEP - 1].id) for v in np.unique(objects).tolist() if v}


def read_cityscapes(sources: Sequence[Path]) -> list[Layer]:
    """Read *_gtFine_instanceIds.png: an object has the value 1000 * class + number, any other region its class.

    A region of a thing class without a number is a group of objects, hence a crowd.

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged, or has an unknown value.
    """
    values, labels = _numbered(sources[0], 33)
    is_thing = {c.id: c.is_thing for c in read_classes("cityscapes_19")}
    crowds = {value for value in labels if value < _STEP and is_thing.get(value)}
    return [(values, {v: Region(label, v in crowds) for v, label in labels.items() if label in is_thing})]


def read_scannet(sources: Sequence[Path]) -> list[Layer]:
    """Read an instance image: an object has the value 1000 * NYU40 class + number, any other region its class.

    As in ScanNet's own script, each value is a segment, also of wall and floor, and none is a crowd.

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged, or has an unknown value.
    """
    values, labels = _numbered(sources[0], 40)
    known = {c.id for c in read_classes("scannet_20")}
    return [(values, {value: Region(label) for value, label in labels.items() if label in known})]


def _numbered(path: Path, most: int) -> tuple[np.ndarray, dict[int, int]]:
    """Read an image of the values 1000 * class + number, or just class; returns it and the class of each value."""
    values = read_labels(path)
    labels = {value: value if value < _STEP else value // _STEP for value in np.unique(values).tolist()}
    for value, label in labels.items():
        if label > most:
            raise ValueError(f"{path} has the value {value}, whose class {label} is not in 0 to {most}")
    return values, labels


def read_bdd10k(sources: Sequence[Path]) -> list[Layer]:
    """Read an RGBA bitmask: red is the class, green has flags (1 ignored, 2 crowd), blue and alpha are the object.

    Ignored objects count as crowds. Stuff of one class is one region.

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged, or has an unknown value.
    """
    with open_image(sources[0], "bitmask") as image:
        pixels = np.asarray(upright(image)).astype(np.int64)
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        raise ValueError(f"{sources[0]} is not a bitmask of four channels: its shape is {pixels.shape}")
    red, green, blue, alpha = np.moveaxis(pixels, 2, 0)
    classes = {c.id: c for c in read_classes("bdd10k_panoptic_40")}
    _check_range(red, len(classes), sources[0])
    is_thing = np.array([False, *(c.is_thing for c in classes.values())])[red]
    crowd = (green & 3) > 0
    number = np.where(is_thing, blue * 256 + alpha, 0)
    values = np.where(red > 0, ((red * 2 + crowd) << 16) + number, 0)
    return [(values, {v: Region(v >> 17, bool(v >> 16 & 1)) for v in np.unique(values).tolist() if v})]


def _check_same_size(first: np.ndarray, second: np.ndarray, paths: Sequence[Path]) -> None:
    if first.shape[:2] != second.shape[:2]:
        sizes = [f"{paths[i]} is {a.shape[1]} x {a.shape[0]}" for i, a in enumerate((first, second))]
        raise ValueError(", ".join(sizes))


def _check_range(values: np.ndarray, most: int, path: Path) -> None:
    if values.max(initial=0) > most:
        raise ValueError(f"{path} has the class {values.max()}, known are 0 to {most}")


def write_panoptic(job: Job, read: Reader, folder: Path) -> dict[str, Any] | str:
    """Write an image's panoptic PNG; returns its entry in the json, or the problem."""
    try:
        ids, segments = _segments(job, read)
    except (OSError, ValueError) as error:
        return str(error)
    save_png(folder / job.png_name, id2rgb(ids))
    return {"file_name": job.png_name, "segments_info": segments}


def encode_instances(job: Job, read: Reader) -> list[dict[str, Any]] | str:
    """The objects of an image as COCO annotations without ids, or the problem."""
    try:
        ids, segments = _segments(job, read)
    except (OSError, ValueError) as error:
        return str(error)
    for segment in segments:
        segment["segmentation"] = encode_mask(ids == segment.pop("id"))
    return segments


def _segments(job: Job, read: Reader) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw the layers over each other; returns the map of values, int32 [H, W], and COCO's description of each region.

    An area and a box are those of the region before others were drawn over it.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, of another size than the image, or has an unknown
            value.
    """
    layers = read(job.sources)
    with open_image(job.image) as image:
        height, width = upright_size(image)
    shape = layers[0][0].shape
    if shape != (height, width):
        raise ValueError(f"{job.sources[0]} is {shape[1]} x {shape[0]}, its image is {width} x {height}")
    ids = np.zeros(shape, np.int32)
    segments: list[dict[str, Any]] = []
    for values, regions in layers:
        for value in np.unique(values).tolist():
            if (region := regions.get(value)) is None:
                continue
            mask = values == value
            ids[mask] = value
            rows, columns = np.flatnonzero(mask.any(axis=1)).tolist(), np.flatnonzero(mask.any(axis=0)).tolist()
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            segment = {"id": value, "area": int(mask.sum()), "bbox": box}
            segments.append({**segment, "category_id": region.category_id, "iscrowd": int(region.iscrowd)})
    return ids, segments


def _save(target: Path, jobs: Sequence[Job], annotations: Sequence[dict[str, Any]], classes: str) -> None:
    """Write COCO's json; the image id is the index of the job, the classes are those of classes/*.json."""
    images = []
    for index, job in enumerate(jobs):
        with open_image(job.image) as image:
            height, width = upright_size(image)
        images.append({"id": index, "file_name": job.image_name, "height": height, "width": width})
    categories = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in read_classes(classes)]
    save_json(target, {"images": images, "annotations": annotations, "categories": categories})


def _make_panoptic(plan: Plan, name: str, jobs: Sequence[Job], read: Reader) -> None:
    """Make the panoptic PNGs and the json of a benchmark of `PANOPTIC`.

    Raises:
        OSError, ValueError: a file is missing, damaged, has an unknown value or cannot be written, or there are too
            few; the json is not written.
    """
    benchmark = PANOPTIC[name]
    require_count(len(jobs), benchmark.expected, plan, f"images of {name}")
    if (target := plan.root / benchmark.files.json).exists():
        say(f"{target}: already there, left as it is; remove it to make it again")
        return
    work = partial(write_panoptic, read=read, folder=plan.root / benchmark.files.panoptic_root)
    entries = work_through(work, jobs, plan, f"images of {name}")
    annotations = [{"image_id": index, **entry} for index, entry in enumerate(entries)]
    _save(target, jobs, annotations, benchmark.classes)
    say(f"{target}: {len(jobs)} images, {sum(len(a['segments_info']) for a in annotations)} segments")


def make_ade20k(plan: Plan) -> None:
    """Make ADE20K-150's panoptic and instance jsons. All `make_*` raise as `_make_panoptic` does."""
    root = plan.root / "ADEChallengeData2016"
    jobs = []
    for image in matching(root, "images/validation/*.jpg"):
        png = f"{image.stem}.png"
        sources = tuple(root / kind / "validation" / png for kind in ("annotations", "annotations_instance"))
        jobs.append(Job(image, image.name, png, sources))
    _make_panoptic(plan, "ade20k_150_panoptic_val", jobs, read_ade20k)
    if (target := root / "ade20k_instance_val.json").exists():
        say(f"{target}: already there, left as it is; remove it to make it again")
        return
    work = partial(encode_instances, read=read_ade20k_instances)
    found = work_through(work, jobs, plan, f"images of {ADE20K_INSTANCE}")
    objects = [{"image_id": index, **each} for index, listed in enumerate(found) for each in listed]
    annotations = [{"id": number, **each} for number, each in enumerate(objects, start=1)]
    _save(target, jobs, annotations, "ade20k_instance_100")
    say(f"{target}: {len(jobs)} images, {len(annotations)} objects")


def make_cityscapes(plan: Plan) -> None:
    """Make Cityscapes' panoptic jsons from its instanceIds: of val, and of train if its images are there."""
    root = plan.root / "cityscapes"
    for split in ("val", "train"):
        images = root / "leftImg8bit" / split
        if split == "train" and not images.exists():
            continue
        jobs = []
        for image in matching(images, "*/*_leftImg8bit.png"):
            stem, city = image.stem.removesuffix("_leftImg8bit"), image.parent.name
            source = root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png"
            jobs.append(Job(image, f"{city}/{image.name}", f"{stem}.png", (source,)))
        _make_panoptic(plan, f"cityscapes_19_panoptic_{split}", jobs, read_cityscapes)


def make_bdd10k(plan: Plan) -> None:
    """Make BDD10K's panoptic json from its bitmasks."""
    root = plan.root / "bdd100k"
    jobs = [
        Job(image, image.name, f"{image.stem}.png", (root / f"labels/pan_seg/bitmasks/val/{image.stem}.png",))
        for image in matching(root, "images/10k/val/*.jpg")
    ]
    _make_panoptic(plan, "bdd10k_40_panoptic_val", jobs, read_bdd10k)


def make_scannet(plan: Plan, *, raw_table: Path | None) -> None:
    """Make ScanNet-20's panoptic json from the frames of the validation scenes.

    Args:
        plan: folder, processes and counts.
        raw_table: for frames without label images; see `make_scannet_labels`.
    """
    if raw_table:
        make_scannet_labels(plan, raw_table)
    jobs = []
    advice = "It is in ScanNet's repository; datasets/README.md says where"
    for image, labels in find_pairs(LABELS["scannet_20_val"], plan.root, advice):
        scene = image.parents[1]
        source = scene / "instance" / labels.name
        jobs.append(Job(image, f"{scene.name}/color/{image.name}", f"{scene.name}__{labels.name}", (source,)))
    _make_panoptic(plan, "scannet_20_panoptic_val", jobs, read_scannet)
