"""Parts shared by COCO's json formats (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from openworldsam.utils.files import find_missing, named, read_json

logger = logging.getLogger(__name__)

MAX_SIDE = 65_535
"""Longest side of an image; beyond it pycocotools' count of pixels overflows and ends the process."""


ImageId = int | str


class Category(NamedTuple):
    """A class: its id in the dataset's own files, its name, which is its prompt, a colour (RGB, 0..255), and its group,
    such as COCO's supercategory; "" for none."""

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int] = (128, 128, 128)
    group: str = ""


def read_categories(
    json_file: str | Path, *, all_things: bool = False, names: Mapping[int, str] | None = None
) -> tuple[Category, ...]:
    """Return the classes of a COCO json (`listed_categories`), in its order.

    Args:
        json_file: of panoptic segments, or of instances, whose classes have no "isthing".
        all_things: make every class a thing, whatever the json says.
        names: other names by category id, which take the place of those in the json before names are compared.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has no list of classes, or a class twice.
    """
    content = read_json(json_file)
    with expect(json_file, "json of classes"), named(json_file):
        names = names or {}
        categories = tuple(
            Category(
                id_ := whole(c["id"], "a category id"),
                _name(names.get(id_, c["name"])),
                all_things or bool(flag({"isthing": c["isthing"]}, "isthing")),
                group=str(c.get("supercategory", "")),
            )
            for c in listed_categories(content, names)
        )
        for column in ("id", "name"):
            found = Counter(str(getattr(category, column)) for category in categories)
            if twice := sorted(value for value, times in found.items() if times > 1):
                raise ValueError(f"several categories have the same {column}: {', '.join(twice)}")
    return categories


def _name(name: Any) -> str:
    if not isinstance(name, str) or len(name.strip().splitlines()) != 1:
        raise ValueError(f"a category has a name of one line, got {name!r}")
    return name.strip()


def listed_categories(content: Mapping[str, Any], keep: Container[int] = ()) -> list[Mapping[str, Any]]:
    """Return the categories of a COCO json without Roboflow's root, which is no class.

    The root of a project has no object, and is the supercategory of all classes; it may have the name of one of them.

    Args:
        content: of the json.
        keep: ids of categories that stay, whatever they are.
    """
    listed = content["categories"]
    children = {c["name"] for c in listed if c.get("supercategory") == c["name"]}
    roots = [c["id"] for c in listed if c["name"] in children and c.get("supercategory") != c["name"]]
    used = {annotation.get("category_id") for annotation in content["annotations"]} if roots else set()
    return [c for c in listed if c["id"] not in roots or c["id"] in used or c["id"] in keep]


def contiguous_ids(content: Mapping[str, Any], categories: Sequence[Category]) -> dict[int, int]:
    """Return the index of each class by its id in a json.

    The ids are those of the classes, unless the json has the same names under other ids, as Cityscapes'
    createPanopticImgs writes with --use-train-id.
    """
    listed = {category.get("name"): category["id"] for category in content.get("categories", ())}
    ids = {category["id"] for category in content.get("categories", ())}
    other = {c.id for c in categories} - ids and {c.name for c in categories} <= listed.keys()
    return {listed[c.name] if other else c.id: index for index, c in enumerate(categories)}


class Images(dict[ImageId, dict[str, Any]]):
    """The images of a json by their id; looking up one that is not listed raises ValueError."""

    def __missing__(self, key: object) -> dict[str, Any]:
        raise ValueError(f"its list of images does not have {key!r}")


def by_id(images: Iterable[Mapping[str, Any]]) -> Images:
    """Index the images of a json by their id, with their sizes as whole numbers.

    Numbers are the ids of COCO, texts (file stems) those of the scripts of ADE20K, ScanNet and Cityscapes.

    Raises:
        KeyError: an image has no id or size.
        ValueError: two images have one id, ids are of two kinds, or an id or size is of the wrong type.
    """
    found = Images()
    for image in images:
        id_ = image["id"] if isinstance(image["id"], str) else whole(image["id"], "an image id that is no text")
        if id_ in found:
            raise ValueError(f"two images have the id {id_}")
        size = {key: whole(image[key], f"the {key} of image {id_}") for key in ("height", "width")}
        for key, side in size.items():
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"the {key} of image {id_} is {side}, not one of 1 to {MAX_SIDE}")
        found[id_] = {**image, **size, "id": id_}
        if "file_name" not in image and "coco_url" in image:  # LVIS; the address ends with the folder and the file
            found[id_]["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    if len({type(id_) for id_ in found}) > 1:  # pycocotools would take all for texts and find none
        raise ValueError("some image ids are numbers and some are texts")
    return found


def correct_names(images: Mapping[ImageId, dict[str, Any]], root: str | Path) -> None:
    """Replace image names that do not exist below the root and that scripts are known to write.

    Names written on Windows have backslashes. ScanNet's have the suffix of the label images; Cityscapes' lack the
    folder of the city and have a "_gtFine"; LVIS's have the folder, which may be the root itself.
    """
    missing = set(find_missing(Path(root, image["file_name"]) for image in images.values()))
    for image in images.values():
        name = image["file_name"]
        if str(Path(root, name)) in missing:
            meant = [name.replace("\\", "/"), str(Path(name).with_suffix(".jpg"))]
            meant.append(f"{name.partition('_')[0]}/{name.replace('_gtFine', '')}")
            meant += [Path(name).name] * ("coco_url" in image)
            image["file_name"] = next((other for other in meant if Path(root, other).exists()), name)


def whole(value: Any, name: str) -> int:
    """Return a whole number as int; some scripts write 480 as 480.0.

    Raises:
        ValueError: it is anything else; the message starts with the name.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}, not a whole number")
    return value


def image_entries(image: Mapping[str, Any], root: str | Path) -> dict[str, Any]:
    """Return the entries of a record that describe an image of a json, whose file is below the root."""
    path = str(Path(root, image["file_name"]))
    return {"file_name": path, "image_id": image["id"], "height": image["height"], "width": image["width"]}


def is_crowd(annotation: Mapping[str, Any]) -> int:
    """Return the iscrowd flag of a COCO annotation."""
    return flag(annotation, "iscrowd")


def flag(entry: Mapping[str, Any], key: str) -> int:
    """Return a flag of an entry of a json; 0 if it has none, or null.

    Raises:
        ValueError: it is neither 0 nor 1, nor a truth value.
    """
    if (value := entry.get(key)) not in (None, 0, 1):
        raise ValueError(f"{key} must be 0 or 1, got {value!r}")
    return int(value or 0)


def segment_area(segment: Mapping[str, Any]) -> float:
    """Return the area that a json gives a panoptic segment, in pixels; 0 if it gives none, or null.

    Raises:
        ValueError: it is not a number from 0.
    """
    area = 0 if segment.get("area") is None else segment["area"]
    if not isinstance(area, (int, float)) or not 0 <= area < math.inf:
        raise ValueError(f"the area of segment {segment['id']} is {area!r}, not a number of pixels")
    return area


def warn_of_missing(paths: Iterable[str], source: str | Path, hint: str = "") -> None:
    """Log how many of the files that a json or folder names are missing.

    Raises:
        FileNotFoundError: none of them exists.
    """
    paths = list(paths)
    if not (missing := find_missing(paths)):
        return
    message = f"{len(missing)} of {len(paths)} files that {source} names are missing, such as {missing[0]}. {hint}"
    if len(missing) == len(paths):
        raise FileNotFoundError(message.rstrip())
    logger.warning(message.rstrip())


def warn_of_damage(file_name: str, problems: Iterable[str]) -> None:
    """Log what is wrong with objects of an image."""
    for problem in problems:
        logger.warning("%s: %s; it is incomplete or left out", file_name, problem)


@contextmanager
def expect(path: str | Path, kind: str, hint: str = "") -> Iterator[None]:
    """Turn errors of missing or misplaced content into a ValueError that names the file.

    Args:
        path: the file.
        kind: the format that it should have, such as "COCO panoptic json".
        hint: what to do about another format; ends the message.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {kind}: {lack(error)}. {hint}".rstrip(". ")) from error


def lack(error: Exception) -> str:
    """Say what a malformed json lacks, from the KeyError or TypeError of reading it."""
    if not isinstance(error, KeyError):
        return str(error)
    name = error.args[0]
    return f"it has no {name!r}" if isinstance(name, str) else f"its list of images does not have {name}"
