"""What a person takes home: an archive of the results, made in memory."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openworldsam.app.session import Session
from openworldsam.demo import coco_json
from openworldsam.visualization import draw_prediction


def results_zip(session: Session, info: dict[str, Any]) -> bytes:
    """A zip of what is shown, named after the picture.

    `<name>.json`: the masks as a COCO dataset of one image, with RLE. `<name>_ids.png`: uint16 [H, W], 0 where there
    is no mask, else the id of its annotation; where masks overlap the best score wins. `<name>_overlay.png`: the
    picture with the masks over it.

    Args:
        session: with an answer.
        info: goes into the json.

    Raises:
        ValueError: nothing was asked yet.
    """
    shown = session.shown
    if shown is None:
        raise ValueError("there are no results yet: ask something first")
    stem = Path(session.name).stem
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{stem}.json", json.dumps(coco_json(shown, session.name, info)))
        file.writestr(f"{stem}_ids.png", _png(shown.label_map.astype(np.uint16)))
        file.writestr(f"{stem}_overlay.png", _png(draw_prediction(session.image, shown)))
    return archive.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
