"""Files that CVAT imports: annotations as "CVAT for images 1.1", and the labels that a task for them needs.

The format: https://docs.cvat.ai/docs/other/xml_format. A mask has left, top, width and height of its box in pixels, and
rle, the lengths of its runs within the box, row by row, the first one of pixels that are not in the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from pycocotools import mask as mask_util

from openworldsam.annotate.results import Results
from openworldsam.data.rle import run_lengths
from openworldsam.utils.files import save_atomically, save_json


def write_cvat(results: Results, names: Sequence[str]) -> list[Path]:
    """Write cvat.xml, the annotations, and cvat_labels.json, for the raw label editor of a new task.

    Images are known by their path within the folder. Better scores are above worse (z_order).

    Args:
        results: of the pictures.
        names: all pictures.

    Returns:
        the files.
    """
    annotations, labels = results.folder / "cvat.xml", results.folder / "cvat_labels.json"
    save_atomically(annotations, lambda partial: _write_annotations(partial, results, names))
    save_json(labels, [{"name": text, "type": "mask", "attributes": []} for text in results.prompts.texts])
    return [annotations, labels]


def _write_annotations(path: Path, results: Results, names: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write(f"<meta><task><labels>\n{_labels(results.prompts.texts)}</labels></task></meta>\n")
        for number, record in results.records(names):
            size = {key: record[key] for key in ("width", "height")}
            image = {"id": number - 1, "name": record["file_name"], **size}
            file.write(f"<image {_attributes(image)}>\n")
            worst_first = sorted(record["annotations"], key=lambda annotation: annotation["score"])
            for level, annotation in enumerate(worst_first):
                label = results.prompts.texts[annotation["category_id"] - 1]
                mask = {"label": label, "source": "auto", "occluded": 0, **_box_and_runs(annotation), "z_order": level}
                file.write(f"<mask {_attributes(mask)}></mask>\n")
            file.write("</image>\n")
        file.write("</annotations>\n")


def _labels(texts: Sequence[str]) -> str:
    """Of the head, which CVAT itself does not read; other importers of the format, such as Datumaro's, need it."""
    names = (escape(text) for text in texts)
    return "".join(f"<label><name>{name}</name><type>mask</type><attributes/></label>\n" for name in names)


def _box_and_runs(annotation: Mapping[str, Any]) -> dict[str, Any]:
    mask: np.ndarray = mask_util.decode(annotation["segmentation"]).astype(bool)
    left, top, width, height = map(int, annotation["bbox"])
    runs = run_lengths(mask[top : top + height, left : left + width])
    return {"rle": ", ".join(map(str, runs)), "left": left, "top": top, "width": width, "height": height}


def _attributes(values: Mapping[str, object]) -> str:
    return " ".join(f"{key}={quoteattr(str(value))}" for key, value in values.items())
