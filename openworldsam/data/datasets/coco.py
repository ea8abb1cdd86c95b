"""COCO 2017 panoptic, and any dataset in the same format, for Detectron2's DatasetCatalog and MetadataCatalog.

A panoptic dataset is a json (https://cocodataset.org/#format-data, "Panoptic Segmentation") and a folder of PNGs of
the images' size. The colour of a pixel is the id of its segment, R + 256 G + 65536 B; 0 is void.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from openworldsam.utils.files import find_missing, read_json

logger = logging.getLogger(__name__)

SEGMENTATION = ("panoptic", "instance", "semantic")
"""Tasks on which a dataset with panoptic ground truth can be scored."""
MAX_SIDE = 65_535
"""Of an image; with more, pycocotools' count of pixels overflows, and the process ends."""
VOID = 255
"""Label of pixels that no class owns, in semantic ground truth."""


def plain_name(name: str) -> str:
    """A COCO class name without its bookkeeping: "grass-merged" is grass. No two of the 133 become the same."""
    for suffix in ("-other", "-merged", "-stuff"):
        name = name.replace(suffix, "")
    return name


class Category(NamedTuple):
    """A class: its id in the dataset's own files, the text that prompts for it, and a colour (RGB, 0..255)."""

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int] = (128, 128, 128)


CATEGORIES: tuple[Category, ...] = tuple(
    Category(c["id"], plain_name(c["name"]), bool(c["isthing"]), tuple(c["color"])) for c in COCO_CATEGORIES
)
"""The 133 classes of COCO panoptic, 80 things first; the position is the contiguous class id."""

COCO_STUFF = frozenset(category.name for category in CATEGORIES if not category.is_thing)
"""Names that panoptic segmentation takes for stuff unless told otherwise: the 53 of COCO."""


class Segment(TypedDict):
    """A segment of an image: id is its value in the PNG, category_id contiguous, area in pixels."""

    id: int
    category_id: int
    isthing: bool
    iscrowd: int
    area: int


class PanopticRecord(TypedDict, total=False):
    """An image of a panoptic dataset; sem_seg_file_name only where the dataset has a folder for it."""

    file_name: str
    image_id: int
    height: int
    width: int
    pan_seg_file_name: str
    sem_seg_file_name: str
    segments_info: list[Segment]


class PanopticFiles(NamedTuple):
    """Where a panoptic dataset is. Relative paths start from `dataset_root`.

    semseg_root: contiguous class ids as PNGs; datasets/prepare.py makes them. instances_json: COCO's own
    instances, for Detectron2's evaluators; ours takes the things of the panoptic segments.
    """

    json: str
    image_root: str
    panoptic_root: str
    semseg_root: str | None = None
    instances_json: str | None = None


_PREPARE = "datasets/README.md says how to get COCO; `python datasets/prepare.py coco` makes what is not for download"


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
        register_panoptic(name, files, CATEGORIES, hint=_PREPARE)


def register_panoptic(name: str, files: PanopticFiles, categories: Sequence[Category], *, hint: str = "") -> None:
    """Put a dataset into Detectron2's catalogs, in place of one of the same name.

    Its metadata have what Detectron2's COCOPanopticEvaluator and SemSegEvaluator need, vocabulary and is_thing, one
    entry per contiguous class id, and tasks, those on which it is scored. The paths (panoptic_json, panoptic_root,
    image_root, sem_seg_root, json_file) join them when the dataset is loaded.

    Args:
        name: in the catalogs.
        files: where it is.
        categories: its classes in the order of their contiguous ids.
        hint: what to do about a missing file; ends the error message.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, partial(_load_registered, name, files, categories, hint))
    names, colors = [c.name for c in categories], [list(c.color) for c in categories]
    contiguous = {c.id: index for index, c in enumerate(categories)}
    set_metadata(
        name,
        vocabulary=names,
        is_thing=[c.is_thing for c in categories],
        # Detectron2's "standard" panoptic layout: one numbering for things and stuff, and the full lists for both
        thing_classes=names,
        stuff_classes=names,
        thing_colors=colors,
        stuff_colors=colors,
        thing_dataset_id_to_contiguous_id={c.id: contiguous[c.id] for c in categories if c.is_thing},
        # every class, not stuff alone: SemSegEvaluator looks all of them up here
        stuff_dataset_id_to_contiguous_id=contiguous,
        evaluator_type="coco_panoptic_seg",
        tasks=SEGMENTATION,
        ignore_label=VOID,
        label_divisor=1000,
    )


def set_metadata(name: str, **entries: object) -> None:
    """Set entries of a dataset's metadata, over older ones.

    Not by Detectron2's own setter, which forbids another value, as another root would be.
    """
    vars(MetadataCatalog.get(name)).update(entries)


def _load_registered(
    name: str, files: PanopticFiles, categories: Sequence[Category], hint: str
) -> list[PanopticRecord]:
    root = dataset_root()
    json_file, image_root, panoptic_root, semseg_root, instances = (str(root / f) if f else None for f in files)
    assert json_file and image_root and panoptic_root
    set_metadata(name, panoptic_json=json_file, image_root=image_root, panoptic_root=panoptic_root)
    set_metadata(name, sem_seg_root=semseg_root, json_file=instances)
    return load_panoptic(json_file, image_root, panoptic_root, semseg_root, categories=categories, hint=hint)


def load_panoptic(
    json_file: str | Path,
    image_root: str | Path,
    panoptic_root: str | Path,
    semseg_root: str | Path | None = None,
    *,
    categories: Sequence[Category] = CATEGORIES,
    hint: str = "",
) -> list[PanopticRecord]:
    """Read a COCO-panoptic dataset into Detectron2's records, in the order of the json's annotations.

    Missing images and PNGs are counted in a warning; their records stay, so that no figure is of fewer images
    unnoticed. For a dataset with classes of its own, see `read_categories`.

    Args:
        json_file: COCO-panoptic json.
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNGs.
        semseg_root: folder of the semantic PNGs, if there is one; they may be missing.
        categories: the classes in the order of their contiguous ids.
        hint: what to do about a missing file; ends the error message.

    Raises:
        FileNotFoundError: the json, or every single image or PNG, is missing.
        ValueError: the json is damaged or of another format, has a category id that is not in `categories`, or no
            image with a segment that is not a crowd.
    """
    content = read_json(json_file, hint)
    contiguous = {category.id: index for index, category in enumerate(categories)}
    try:
        images = by_id(content["images"])
        records = [
            _record(annotation, images, image_root, panoptic_root, semseg_root, contiguous, categories)
            for annotation in content["annotations"]
        ]
        if twice := [i for i, times in Counter(r["image_id"] for r in records).items() if times > 1]:
            raise ValueError(f"{len(twice)} images are annotated twice, such as image {twice[0]}")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{json_file} is no COCO panoptic json: {lack(error)}. {hint}".rstrip()) from error
    except ValueError as error:
        raise ValueError(f"{json_file}: {error}") from None
    if not any(not segment["iscrowd"] for record in records for segment in record["segments_info"]):
        raise ValueError(f"{json_file} has no usable image: {len(records)} annotated, none with a segment to learn")
    warn_of_missing((r["file_name"] for r in records), json_file, hint)
    warn_of_missing((r["pan_seg_file_name"] for r in records), json_file, hint)
    return records


def _record(
    annotation: Mapping[str, Any],
    images: Mapping[int, Mapping[str, Any]],
    image_root: str | Path,
    panoptic_root: str | Path,
    semseg_root: str | Path | None,
    contiguous: Mapping[int, int],
    categories: Sequence[Category],
) -> PanopticRecord:
    image = images[annotation["image_id"]]
    segments: list[Segment] = []
    for segment in annotation["segments_info"]:
        if (index := contiguous.get(segment["category_id"])) is None:
            raise ValueError(
                f"segment {segment['id']} of image {image['id']} has the category id {segment['category_id']!r}, which "
                f"is none of the {len(categories)} known ones; give `categories` that fit the file"
            )
        is_thing, crowd = categories[index].is_thing, is_crowd(segment)
        segments.append(
            Segment(id=segment["id"], category_id=index, isthing=is_thing, iscrowd=crowd, area=segment["area"])
        )
    ids = [segment["id"] for segment in segments]
    if not all(isinstance(i, int) for i in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"the segments of image {image['id']} are to have a number each, of its own; they have {ids}")
    record = PanopticRecord(
        file_name=str(Path(image_root, image["file_name"])),
        image_id=image["id"],
        height=image["height"],
        width=image["width"],
        pan_seg_file_name=str(Path(panoptic_root, annotation["file_name"])),
        segments_info=segments,
    )
    if semseg_root is not None:
        record["sem_seg_file_name"] = str(Path(semseg_root, annotation["file_name"]))
    return record


def read_categories(json_file: str | Path, *, all_things: bool = False) -> tuple[Category, ...]:
    """The classes that a COCO json lists, in its order; names are left as they are.

    Args:
        json_file: of panoptic segments; or of instances, which says nothing about `all_things`.
        all_things: every class is a thing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has no list of classes, or a class twice.
    """
    try:
        listed = read_json(json_file)["categories"]
        categories = tuple(Category(c["id"], c["name"], all_things or bool(c["isthing"])) for c in listed)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{json_file} lists no panoptic classes: {lack(error)}") from error
    for id_, name, *_ in categories:
        if not isinstance(id_, int) or not isinstance(name, str) or len(name.strip().splitlines()) != 1:
            raise ValueError(f"{json_file}: a category is a number and a name of one line, got {id_!r} and {name!r}")
    for column in ("id", "name"):
        found = Counter(str(getattr(category, column)) for category in categories)
        if twice := sorted(value for value, times in found.items() if times > 1):
            raise ValueError(f"{json_file} has categories of the same {column}: {', '.join(twice)}")
    return categories


def dataset_root() -> Path:
    """The folder of all datasets, as of now: $DETECTRON2_DATASETS, or `datasets` in the current folder."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def by_id(images: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The images of a json by their id.

    Raises:
        KeyError: an image has no id or size.
        ValueError: two images have one id, or an id or size is no number.
    """
    found: dict[int, Mapping[str, Any]] = {}
    for image in images:
        if not isinstance(image["id"], int):
            raise ValueError(f"the image id {image['id']!r} is no whole number")
        if image["id"] in found:
            raise ValueError(f"two images have the id {image['id']}")
        for key in ("height", "width"):
            if not isinstance(image[key], int) or not 1 <= image[key] <= MAX_SIDE:
                raise ValueError(f"the {key} of image {image['id']} is {image[key]!r}, not one of 1 to {MAX_SIDE}")
        found[image["id"]] = image
    return found


def is_crowd(annotation: Mapping[str, Any]) -> int:
    """The flag of a COCO annotation, which may be left out.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    if (value := annotation.get("iscrowd", 0)) not in (0, 1):
        raise ValueError(f"iscrowd is 0 or 1, got {value!r}")
    return int(value)


def warn_of_missing(paths: Iterable[str], json_file: str | Path, hint: str = "") -> None:
    """Log how many of the files that a json names do not exist.

    Raises:
        FileNotFoundError: none of them exists.
    """
    paths = list(paths)
    if not (missing := find_missing(paths)):
        return
    message = f"{len(missing)} of {len(paths)} files that {json_file} names are missing, such as {missing[0]}. {hint}"
    if len(missing) == len(paths):
        raise FileNotFoundError(message.rstrip())
    logger.warning(message.rstrip())


def lack(error: Exception) -> str:
    """What a malformed json lacks, from the KeyError or TypeError of reading it."""
    if not isinstance(error, KeyError):
        return str(error)
    name = error.args[0]
    return f"it has no {name!r}" if isinstance(name, str) else f"its list of images does not have {name}"
