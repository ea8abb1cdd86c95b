"""The archive of results that a visitor downloads, made in memory."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openworldsam.app.session import Session
from openworldsam.predictor import coco_dataset
from openworldsam.utils.files import png_bytes
from openworldsam.visualization import draw_prediction


def results_zip(session: Session, info: Mapping[str, Any]) -> bytes:
    """Pack the shown masks into a zip.

    `<name>.json`: the masks as a COCO dataset of one image, with RLE. `<name>_ids.png`: uint16 [H, W], the annotation
    id of each pixel, 0 = no mask; where masks overlap the best score wins. `<name>_overlay.png`: the masks drawn over
    the image.

    Args:
        session: with an answer.
        info: goes into the JSON.

    Raises:
        ValueError: there is no answer yet.
    """
    shown = session.shown
    if shown is None:
        raise ValueError("there are no results yet: ask something first")
    stem = Path(session.name).stem
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{stem}.json", json.dumps(coco_dataset(shown, session.name, info)))
        file.writestr(f"{stem}_ids.png", png_bytes(shown.label_map.astype(np.uint16)))
        file.writestr(f"{stem}_overlay.png", png_bytes(draw_prediction(session.image, shown)))
    return archive.getvalue()
