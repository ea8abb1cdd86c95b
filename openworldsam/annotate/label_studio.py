"""Files that Label Studio imports: tasks with predictions, and the labeling configuration that they need.

Masks are brush regions, which keep every pixel, holes and separate parts; Label Studio's polygons have neither.
    Tasks: https://labelstud.io/guide/predictions (label_studio.json)
    Regions: https://labelstud.io/tags/brushlabels
    Packing of a mask: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack#encoding-format
    Images, which Label Studio serves itself: https://labelstud.io/guide/storage, "Local storage"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from pycocotools import mask as mask_util

from openworldsam.annotate.coco import write_list
from openworldsam.annotate.results import Record, Results
from openworldsam.data.rle import run_lengths
from openworldsam.utils.files import save_atomically

TAG, IMAGE = "tag", "image"
"""Names in the labeling configuration that regions refer to."""
RUN_BITS = (3, 4, 8, 16)
"""Bits that a packed run may have for its length; each run says which."""


def write_label_studio(results: Results, names: Sequence[str], folder: Path) -> list[Path]:
    """Write label_studio.json, the tasks, and label_studio.xml, the labeling configuration.

    An image is taken from /data/local-files/?d=FOLDER/NAME, which Label Studio serves if its document root is the
    folder above that of the pictures and a local storage of the project is the latter.

    Args:
        results: of the pictures.
        names: all pictures.
        folder: that they are in.

    Returns:
        the files.
    """
    tasks, config = (results.folder / f"label_studio.{suffix}" for suffix in ("json", "xml"))
    save_atomically(tasks, lambda partial: _write_tasks(partial, results, names, folder.resolve().name))
    labels = "".join(f"    <Label value={quoteattr(text)}/>\n" for text in results.prompts.texts)
    view = (
        f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>\n'
        f'  <BrushLabels name="{TAG}" toName="{IMAGE}">\n{labels}  </BrushLabels>\n</View>\n'
    )
    save_atomically(config, lambda partial: partial.write_text(view, encoding="utf-8"))
    return [tasks, config]


def _write_tasks(path: Path, results: Results, names: Sequence[str], folder: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        write_list(file, _tasks(results, names, folder))


def _tasks(results: Results, names: Sequence[str], folder: str) -> Iterator[dict[str, Any]]:
    for _, record in results.records(names):
        regions = [
            _region(place, annotation, record, results.prompts.texts)
            for place, annotation in enumerate(record["annotations"], start=1)
        ]
        url = "/data/local-files/?d=" + quote(f"{folder}/{record['file_name']}")
        yield {"data": {IMAGE: url}, "predictions": [{"model_version": "openworldsam", "result": regions}]}


def _region(place: int, annotation: dict[str, Any], record: Record, texts: Sequence[str]) -> dict[str, Any]:
    packed = pack_mask(mask_util.decode(annotation["segmentation"]).astype(bool))
    return {
        "id": f"mask{place}",
        "type": "brushlabels",
        "from_name": TAG,
        "to_name": IMAGE,
        "original_width": record["width"],
        "original_height": record["height"],
        "image_rotation": 0,
        "score": annotation["score"],
        "value": {"format": "rle", "rle": packed, "brushlabels": [texts[annotation["category_id"] - 1]]},
    }


def pack_mask(mask: np.ndarray) -> list[int]:
    """A mask, bool [H, W], as the bytes of rle-pack: its pixels row by row as RGBA of 255 or 0.

    Bits, highest first: the number of values in 32, their size in bits less 1 in 5, `RUN_BITS` less 1 in 4 each. Then
    of each run a 1, the index into `RUN_BITS` in 2, its length less 1 in so many, and the value in 8.
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
