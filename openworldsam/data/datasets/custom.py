"""Custom datasets, each described by a small YAML or JSON file that DATASETS.OWN names (datasets/README.md).

    name: reef_val                # its name in DATASETS.TRAIN, DATASETS.TEST and --benchmarks
    images: images                # folder
    labels: labels                # label images; or   instances: FILE.json   or   panoptic: FILE.json
    panoptic_images: panoptic     # with panoptic: the folder of its PNGs
    classes: [sand, coral, fish]  # the values 0, 1, 2; or {1: sand, 4: coral}. For a json: other names by category id
    things: [fish]                # default: none, or what the json says
    ignore: 255                   # label value, or a list of them, of pixels of no class

Relative paths start from the file's own folder.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from openworldsam.data.datasets.catalog import PanopticFiles, register_dataset, register_panoptic, set_metadata
from openworldsam.data.preprocessing import IMAGE_SUFFIXES
from openworldsam.data.records.coco_json import Category, read_categories
from openworldsam.data.records.instances import load_instances
from openworldsam.data.records.labels import LABEL_SUFFIXES, MAX_LABEL, LabelCoding, LabelRecord, load_labels
from openworldsam.utils.files import by_stem, read_any_json
from openworldsam.utils.safe_yaml import read_yaml
from openworldsam.utils.text import brief, shortened

_KINDS = ("labels", "instances", "panoptic")
_KEYS = ("name", "images", *_KINDS, "panoptic_images", "classes", "things", "ignore")


class Description(NamedTuple):
    """A checked description: kind is one of `_KINDS`, truth the folder or json under that key."""

    path: Path
    name: str
    images: Path
    kind: str
    truth: Path
    panoptic_images: Path | None
    classes: Mapping[int, str]
    things: tuple[str, ...] | None
    ignored: tuple[int, ...]

    def categories(self) -> tuple[Category, ...]:
        """Return the classes in the order of their contiguous ids, from the json or by label value.

        Raises:
            ValueError: the description and its json do not match, or a label value is both a class and ignored.
        """
        if self.kind == "labels":
            if not self.classes or max(self.classes) > MAX_LABEL:
                raise ValueError(f"{self.path}: classes have label values from 0 to {MAX_LABEL}, got {self.classes}")
            if both := set(self.classes) & set(self.ignored):
                raise ValueError(f"{self.path}: the label values {sorted(both)} are both classes and ignored")
            categories = tuple(Category(number, name, False) for number, name in sorted(self.classes.items()))
        else:
            decided = self.kind == "instances" or self.things is not None  # the json need not say it
            categories = read_categories(self.truth, all_things=decided, names=self.classes)
            if unknown := set(self.classes) - {c.id for c in categories}:
                raise ValueError(
                    f"{self.path}: classes names the ids {sorted(unknown)}, which {self.truth} does not have"
                )
        if self.things is None:
            return categories
        if strangers := set(self.things) - {c.name for c in categories}:
            names = [c.name for c in categories]
            raise ValueError(f"{self.path}: things has {sorted(strangers)}, which are not among the classes {names}")
        return tuple(c._replace(is_thing=c.name in self.things) for c in categories)


def register(path: str | Path) -> str:
    """Register the dataset that a file describes; may be called again after the file has changed.

    Returns:
        the name of the dataset.

    Raises:
        FileNotFoundError: the file, or a json or folder that it names, is missing.
        ValueError: the description is wrong; says where.
    """
    described = read_description(path)
    name, kind = described.name, described.kind
    if name in DatasetCatalog and getattr(MetadataCatalog.get(name), "custom_file", None) != str(described.path):
        raise ValueError(f"{described.path}: there is another dataset named {name!r}; choose another name")
    categories, hint = described.categories(), f"{described.path} names it"
    if kind == "panoptic":
        files = PanopticFiles(str(described.truth), str(described.images), str(described.panoptic_images))
        register_panoptic(name, files, categories, hint=hint)
    elif kind == "instances":
        load = partial(load_instances, described.truth, described.images, categories=categories, hint=hint)
        register_dataset(name, load, categories, ("instance",))
    else:
        register_dataset(name, partial(_load_labels, described, categories), categories, ("semantic",))
    set_metadata(name, custom_file=str(described.path))
    return name


def _load_labels(described: Description, categories: tuple[Category, ...]) -> list[LabelRecord]:
    pairs = pair_by_name(described.images, described.truth)
    return load_labels(described.name, pairs, LabelCoding.of(categories, described.ignored), described.path)


def read_description(path: str | Path) -> Description:
    """Read and check a description.

    Raises:
        FileNotFoundError: the file, or a json or folder that it names, is missing.
        ValueError: the description is wrong; says where.
    """
    path = Path(os.path.expanduser(path)).absolute()
    # YAML is nearly a superset of JSON, but has no tabs
    hint, complaint = "DATASETS.OWN names it", "is neither YAML nor JSON"
    is_json = path.suffix.lower() == ".json"
    content = read_any_json(path, hint, _unique) if is_json else read_yaml(path, hint, complaint)
    try:
        return _parsed(path, content)
    except ValueError as error:
        raise ValueError(shortened(f"{path}: {error}")) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, of whose equal keys Python would keep the last."""
    if twice := [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]:
        raise ValueError(f"it has the key {brief(twice[0])} twice")
    return dict(pairs)


def _parsed(path: Path, content: Any) -> Description:
    if not isinstance(content, dict):
        raise ValueError(f"a description is a list of `key: value`, got {type(content).__name__}")
    for key in content:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            raise ValueError(f"unknown key {key!r}; " + (f"is it {close[0]!r}?" if close else f"keys are {_KEYS}"))
    kinds = [kind for kind in _KINDS if kind in content]
    if len(kinds) != 1:
        raise ValueError(f"one of the keys {', '.join(_KINDS)} is needed, got {' and '.join(kinds) or 'none'}")
    panoptic = kinds == ["panoptic"]
    if panoptic != ("panoptic_images" in content):
        raise ValueError(
            "panoptic_images, the folder of the panoptic PNGs, goes with panoptic" + ", got no such key" * panoptic
        )
    for key in ("name", "images"):
        if key not in content:
            raise ValueError(f"the key {key!r} is missing")
    if kinds == ["labels"] and "classes" not in content:
        raise ValueError("the key 'classes' is missing: the names of the label values")
    if kinds != ["labels"] and "ignore" in content:
        raise ValueError("ignore goes with labels; with a json, pixels in no segment have no class")
    name = _text(content, "name")
    if name in (".", "..") or "/" in name or not name.isprintable():
        raise ValueError(f"name is also a folder's, so it must be printable and have no slash, got {name!r}")
    things = content.get("things")
    if "things" in content and not (isinstance(things, list) and all(isinstance(each, str) for each in things)):
        raise ValueError(f"things must be a list of class names, got {things!r}")
    return Description(
        path=path,
        name=name,
        images=_there(path, content, "images", folder=True),
        kind=kinds[0],
        truth=_there(path, content, kinds[0], folder=kinds == ["labels"]),
        panoptic_images=_there(path, content, "panoptic_images", folder=True) if panoptic else None,
        classes=_classes(content.get("classes", {})),
        things=None if things is None else tuple(map(str.strip, things)),
        ignored=_ignored(content.get("ignore", [])),
    )


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} must be a text, got {value!r}")
    return value.strip()


def _there(path: Path, content: Mapping[str, Any], key: str, *, folder: bool) -> Path:
    found = path.parent / os.path.expanduser(_text(content, key))
    if not (found.is_dir() if folder else found.is_file()):
        raise FileNotFoundError(f"{path}: {key}: there is no {'folder' if folder else 'file'} {found}")
    return found


def _classes(value: Any) -> dict[int, str]:
    named = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(named, dict):
        raise ValueError(f"classes must be a list of names, or names by label value, got {value!r}")
    classes = {_number(key): name for key, name in named.items()}
    if len(classes) < len(named):
        raise ValueError(f"classes has a label value twice, as a number and as a text: {list(named)}")
    for number, name in classes.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the name of class {number} must be a text, got {name!r}; quote words such as yes and no")
        if len(name.strip().splitlines()) > 1:
            raise ValueError(f"class {number} has a line break in its name: {name!r}")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"the value of class {name!r} must be a whole number from 0, got {number!r}")
    plain = {number: name.strip() for number, name in classes.items()}
    if twice := [name for name, times in Counter(plain.values()).items() if times > 1]:
        raise ValueError(f"classes have the same name: {', '.join(twice)}")
    return plain


def _number(value: Any) -> Any:
    """Return a number that is written as a text, as the keys of JSON always are, as a number."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _ignored(value: Any) -> tuple[int, ...]:
    values = list(map(_number, value if isinstance(value, list) else [value]))
    for each in values:
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each <= MAX_LABEL:
            raise ValueError(f"ignore must be a label value from 0 to {MAX_LABEL}, or a list of them, got {value!r}")
    return tuple(values)


def pair_by_name(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Pair every image with the label image of the same relative path, whatever their suffixes.

    A missing label image is assumed to be a PNG, so that reading it reports it, or is the image of another format in
    its place.

    Raises:
        ValueError: two files differ only in their suffixes, or a label image has no image.
    """
    found, truth = by_stem(images, IMAGE_SUFFIXES), by_stem(labels, LABEL_SUFFIXES)
    if strangers := truth.keys() - found.keys():
        raise ValueError(
            f"{len(strangers)} label images in {labels} have no image in {images}, such as {min(strangers)}"
        )
    others = by_stem(labels, set(IMAGE_SUFFIXES) - set(LABEL_SUFFIXES)) if found.keys() - truth.keys() else {}
    expected = {stem: labels / f"{stem}.png" for stem in found} | others | truth
    return [(path, expected[stem]) for stem, path in sorted(found.items())]
