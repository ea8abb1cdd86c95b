"""Files for Label Studio: tasks with predictions, and the labeling configuration that they need.

Masks are brush regions, which keep every pixel, holes and separate parts; Label Studio's polygons keep neither.
    Tasks: https://labelstud.io/guide/predictions (label_studio.json)
    Regions: https://labelstud.io/tags/brushlabels
    Packing of a mask: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack#encoding-format
    Images, served by Label Studio itself: https://labelstud.io/guide/storage, "Local storage"
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from openworldsam.annotate.coco import json_list
from openworldsam.annotate.results import FolderResults
from openworldsam.data.records.rle import run_lengths
from openworldsam.utils.files import save_text

TAG, IMAGE = "tag", "image"
"""Names in the labeling configuration that regions refer to."""
RUN_BITS = (3, 4, 8, 16)
"""Possible bit widths of a packed run's length; each run names its own."""


def write_label_studio(results: FolderResults, folder: Path) -> list[Path]:
    """Write label_studio.json, the tasks, and label_studio.xml, the labeling configuration; return both.

    Image URLs are /data/local-files/?d=FOLDER/NAME. Label Studio serves them if its document root is the parent of the
    image folder and the project has a local storage of that folder.
    """
    tasks, config = (results.folder / f"label_studio.{suffix}" for suffix in ("json", "xml"))
    save_text(tasks, json_list(_tasks(results, folder.resolve().name)))
    labels = "".join(f"    <Label value={quoteattr(text)}/>\n" for text in results.prompts.texts)
    view = (
        f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>\n'
        f'  <BrushLabels name="{TAG}" toName="{IMAGE}">\n{labels}  </BrushLabels>\n</View>\n'
    )
    save_text(config, view)
    return [tasks, config]


def _tasks(results: FolderResults, folder: str) -> Iterator[dict[str, Any]]:
    for _, record in results.records():
        regions = [
            brush_region(
                f"mask{number}",
                results.mask(record, annotation),
                results.prompts.texts[annotation["category_id"] - 1],
                annotation["score"],
            )
            for number, annotation in enumerate(record["annotations"], start=1)
        ]
        url = "/data/local-files/?d=" + quote(f"{folder}/{record['file_name']}")
        yield {"data": {IMAGE: url}, "predictions": [{"model_version": "openworldsam", "result": regions}]}


def brush_region(
    id_: str, mask: np.ndarray, label: str, score: float, tag: str = TAG, image: str = IMAGE
) -> dict[str, Any]:
    """Make the region of a mask, bool [H, W], for the control and object tags of these names."""
    height, width = mask.shape
    return {
        "id": id_,
        "type": "brushlabels",
        "from_name": tag,
        "to_name": image,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
        "value": {"format": "rle", "rle": pack_mask(mask), "brushlabels": [label]},
    }


def pack_mask(mask: np.ndarray) -> list[int]:
    """Pack a mask, bool [H, W], into rle-pack bytes: its pixels row by row as RGBA values of 255 or 0.

    Bits, highest first: the number of values (32 bits), value size - 1 (5 bits), each of `RUN_BITS` - 1 (4 bits each).
    Then for each run: 1, index into `RUN_BITS` (2 bits), length - 1 (that many bits), value (8 bits).
    """
    bits = [f"{4 * mask.size:032b}{7:05b}", *(f"{size - 1:04b}" for size in RUN_BITS)]
    for index, length in enumerate(run_lengths(mask)):
        value = 255 * (index % 2)
        for start in range(0, 4 * length, 2 ** RUN_BITS[-1]):
            part = min(4 * length - start, 2 ** RUN_BITS[-1])
            kind = next(kind for kind, size in enumerate(RUN_BITS) if part <= 2**size)
            bits.append(f"1{kind:02b}{part - 1:0{RUN_BITS[kind]}b}{value:08b}")
    joined = "".join(bits)
    count = -(-len(joined) // 8)
    return list(int(joined.ljust(8 * count, "0"), 2).to_bytes(count, "big"))
