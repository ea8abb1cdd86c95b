"""COCO instances and panoptic JSONs (https://cocodataset.org/#format-data).

They are written one element at a time, so that memory does not grow with the number of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from openworldsam.annotate.results import FolderResults
from openworldsam.utils.files import save_text


def write_coco(results: FolderResults, info: Mapping[str, Any]) -> list[Path]:
    """Write instances.json, for panoptic segmentation panoptic.json, for tasks with semantic PNGs classes.txt.

    Category ids are the positions of the prompts, from 1. The instances are the masks of any task, stuff too (see
    isthing); the segments have the ids in panoptic/*.png. Images also have `not_found`, the best score of each prompt
    without a mask. `info` is the JSONs' "info". Returns the files.
    """
    texts, is_thing = results.prompts
    categories = [
        {"id": i, "name": text, "isthing": int(thing)}
        for i, (text, thing) in enumerate(zip(texts, is_thing, strict=True), start=1)
    ]
    head = {"info": dict(info), "categories": categories}
    files = [results.folder / "instances.json"]
    save_text(files[0], _json(head, results, _instances(results)))
    if results.task == "panoptic":
        files.append(results.folder / "panoptic.json")
        save_text(files[1], _json(head, results, _segments(results)))
    if results.task in ("panoptic", "semantic"):
        files.append(results.folder / "classes.txt")
        save_text(files[-1], "".join(f"{text}\n" for text in texts))
    return files


def json_list(elements: Iterable[object]) -> Iterator[str]:
    """Yield the pieces of a JSON list, one element per line."""
    yield "["
    for index, element in enumerate(elements):
        yield (",\n" if index else "\n") + json.dumps(element)
    yield "]"


def _json(head: Mapping[str, object], results: FolderResults, annotations: Iterable[object]) -> Iterator[str]:
    """Yield the pieces of a JSON object that has `head`, the images of the results, and annotations of them."""
    keys = ("file_name", "width", "height", "not_found")
    images = ({"id": image_id, **{key: record[key] for key in keys}} for image_id, record in results.records())
    yield json.dumps(head)[:-1] + ', "images": '
    yield from json_list(images)
    yield ', "annotations": '
    yield from json_list(annotations)
    yield "}\n"


def _instances(results: FolderResults) -> Iterator[dict[str, Any]]:
    ids = count(1)
    for image_id, record in results.records():
        for annotation in record["annotations"]:
            yield {"id": next(ids), "image_id": image_id, **annotation}


def _segments(results: FolderResults) -> Iterator[dict[str, Any]]:
    for image_id, record in results.records():
        png = Path(record["file_name"]).with_suffix(".png").as_posix()
        segments = [
            {"id": segment_id, **{key: value for key, value in annotation.items() if key != "segmentation"}}
            for segment_id, annotation in enumerate(record["annotations"], start=1)
        ]
        yield {"image_id": image_id, "file_name": png, "segments_info": segments}
