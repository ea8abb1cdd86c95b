"""Files for CVAT: annotations as "CVAT for images 1.1", and the labels that the CVAT task needs.

Format: https://docs.cvat.ai/docs/other/xml_format. A mask has left, top, width and height of its box in pixels and rle,
the lengths of its runs within the box, row by row, beginning with pixels outside the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from openworldsam.annotate.results import FolderResults
from openworldsam.data.records.rle import run_lengths
from openworldsam.utils.files import save_json, save_text

MAX_LABEL = 64
"""Most characters of a label's name in CVAT."""


def check_labels(texts: Sequence[str]) -> None:
    """Raise ValueError if a prompt is too long for a label of CVAT."""
    if long := [text for text in texts if len(text) > MAX_LABEL]:
        raise ValueError(
            f"CVAT takes labels of up to {MAX_LABEL} characters, {len(long)} of the prompts are longer: shorten them, "
            f"or leave --cvat out; the first has {len(long[0])}: {long[0]}"
        )


def write_cvat(results: FolderResults) -> list[Path]:
    """Write cvat.xml, the annotations, and cvat_labels.json, for the raw label editor of a new task.

    Images are identified by their path within the folder. Masks of better scores are on top (z_order). Returns the
    files.
    """
    annotations, labels = results.folder / "cvat.xml", results.folder / "cvat_labels.json"
    save_text(annotations, (f"{line}\n" for line in _xml_lines(results)))
    save_json(labels, [{"name": text, "type": "mask", "attributes": []} for text in results.prompts.texts])
    return [annotations, labels]


def _xml_lines(results: FolderResults) -> Iterator[str]:
    texts = results.prompts.texts
    yield from ('<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "<version>1.1</version>")
    yield "<meta><task><labels>"  # which CVAT ignores but other importers, such as Datumaro's, need
    yield from (f"<label><name>{escape(text)}</name><type>mask</type><attributes/></label>" for text in texts)
    yield "</labels></task></meta>"
    for image_id, record in results.records():
        size = {key: record[key] for key in ("width", "height")}
        yield f"<image {_attributes({'id': image_id - 1, 'name': record['file_name'], **size})}>"
        worst_first = sorted(record["annotations"], key=lambda annotation: annotation["score"])
        for level, annotation in enumerate(worst_first):
            left, top, width, height = map(int, annotation["bbox"])
            mask = results.mask(record, annotation)
            runs = run_lengths(mask[top : top + height, left : left + width])
            values = {
                "label": texts[annotation["category_id"] - 1],
                "source": "auto",
                "occluded": 0,
                "rle": ", ".join(map(str, runs)),
                "left": left,
                "top": top,
                "width": width,
                "height": height,
                "z_order": level,
            }
            yield f"<mask {_attributes(values)}></mask>"
        yield "</image>"
    yield "</annotations>"


def _attributes(values: Mapping[str, object]) -> str:
    return " ".join(f"{key}={quoteattr(str(value))}" for key, value in values.items())
