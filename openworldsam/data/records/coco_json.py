"""Parts shared by COCO's json formats (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from openworldsam.utils.files import find_missing, read_json

logger = logging.getLogger(__name__)

MAX_SIDE = 65_535
"""Longest side of an image; beyond it pycocotools' count of pixels overflows and ends the process."""


class Category(NamedTuple):
    """A class: its id in the dataset's own files, its name, which is its prompt, and a colour (RGB, 0..255)."""

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int] = (128, 128, 128)


def read_categories(json_file: str | Path, *, all_things: bool = False) -> tuple[Category, ...]:
    """Return the classes of a COCO json, in its order; names are left as they are.

    Args:
        json_file: of panoptic segments, or of instances, whose classes have no "isthing".
        all_things: make every class a thing.

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


def by_id(images: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Index the images of a json by their id.

    Raises:
        KeyError: an image has no id or size.
        ValueError: two images have one id, or an id or size is not a number.
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


def image_entries(image: Mapping[str, Any], root: str | Path) -> dict[str, Any]:
    """Return the entries of a record that describe an image of a json, whose file is below the root."""
    path = str(Path(root, image["file_name"]))
    return {"file_name": path, "image_id": image["id"], "height": image["height"], "width": image["width"]}


def is_crowd(annotation: Mapping[str, Any]) -> int:
    """Return the iscrowd flag of a COCO annotation, 0 by default.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    if (value := annotation.get("iscrowd", 0)) not in (0, 1):
        raise ValueError(f"iscrowd must be 0 or 1, got {value!r}")
    return int(value)


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
