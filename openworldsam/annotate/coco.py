"""COCO's instances and panoptic jsons of a folder (https://cocodataset.org/#format-data).

Jsons are written element by element, so that memory does not grow with the number of pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from openworldsam.annotate.results import Results
from openworldsam.utils.files import save_atomically


def write_coco(results: Results, names: Sequence[str], info: Mapping[str, Any]) -> list[Path]:
    """Write instances.json; of panoptic segmentation also panoptic.json, of tasks with semantic PNGs classes.txt.

    An image's id is its place among the names, a category's that of its prompt, both from 1. Instances are the masks
    of any task, stuff too (isthing says so); segments have the ids of panoptic/*.png.

    Args:
        results: of the pictures.
        names: all pictures, those that are not done too.
        info: goes into the jsons.

    Returns:
        the files.
    """
    texts, is_thing = results.prompts
    categories = [
        {"id": i, "name": text, "isthing": int(thing)}
        for i, (text, thing) in enumerate(zip(texts, is_thing, strict=True), start=1)
    ]
    head = {"info": dict(info), "categories": categories}
    written = [results.folder / "instances.json"]
    _save(written[0], head, {"images": _images(results, names), "annotations": _instances(results, names)})
    if results.task == "panoptic":
        written.append(results.folder / "panoptic.json")
        _save(written[1], head, {"images": _images(results, names), "annotations": _segments(results, names)})
    if results.task in ("panoptic", "semantic"):
        listed = "".join(f"{text}\n" for text in texts)
        written.append(results.folder / "classes.txt")
        save_atomically(written[-1], lambda partial: partial.write_text(listed, encoding="utf-8"))
    return written


def write_list(file: IO[str], elements: Iterable[object]) -> None:
    """Write a json list, an element a line."""
    file.write("[")
    for index, element in enumerate(elements):
        file.write((",\n" if index else "\n") + json.dumps(element))
    file.write("]")


def _save(path: Path, head: Mapping[str, object], lists: Mapping[str, Iterable[object]]) -> None:
    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head)[:-1])
            for key, elements in lists.items():
                file.write(f', "{key}": ')
                write_list(file, elements)
            file.write("}\n")

    save_atomically(path, write)


def _images(results: Results, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, record in results.records(names):
        yield {"id": number, **{key: record[key] for key in ("file_name", "width", "height")}}


def _instances(results: Results, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    count = 0
    for number, record in results.records(names):
        for annotation in record["annotations"]:
            count += 1
            yield {"id": count, "image_id": number, **annotation}


def _segments(results: Results, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    keys = ("category_id", "area", "bbox", "iscrowd", "score", "isthing")
    for number, record in results.records(names):
        png = Path(record["file_name"]).with_suffix(".png").as_posix()
        segments = [
            {"id": place, **{key: annotation[key] for key in keys}}
            for place, annotation in enumerate(record["annotations"], start=1)
        ]
        yield {"image_id": number, "file_name": png, "segments_info": segments}
