"""Verification of a weight file, as a function and as the command `openworldsam verify`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger

from openworldsam.checkpoint import load_weights
from openworldsam.config import load_config
from openworldsam.config_files import find_weights
from openworldsam.data.datasets import coco
from openworldsam.evaluation.benchmark import evaluation_dataset
from openworldsam.modeling import OpenWorldSAM
from openworldsam.utils.device import usable_device
from openworldsam.utils.files import output_file, save_json, save_text
from openworldsam.utils.launch import say, user_errors
from openworldsam.utils.versions import versions
from openworldsam.verify.fusions import IMAGES, compare_fusions, panoptic_records
from openworldsam.verify.inspection import inspect_weights
from openworldsam.verify.report import markdown, summary

DATASET = "coco_2017_val_panoptic_openworldsam"
"""Dataset whose protocol scores the images."""


def verify(
    weights: str | Path, images: str | Path | None = None, config: str | Path = "released", opts: Sequence[str] = ()
) -> dict[str, Any]:
    """Verify a weight file: describe it, compare it with the public files at hand, load it, and score every fusion.

    Args:
        weights: of any layout, see `checkpoint.layouts`; the fusions need all components, as in a full checkpoint.
        images: folder of COCO panoptic images, see `panoptic_records`.
        config: of the model, see `load_config`; opts override it.

    Returns:
        the entries of `inspect_weights`, as JSON; loads: why the file does not fit the config, empty if it does;
        fusions: of `compare_fusions`, None without images or weights that load; config, preset and versions.

    Raises:
        FileNotFoundError: the weights, the tokenizer or the images are missing.
        KeyError: a config key that does not exist.
        ValueError: the file is damaged, or its layout is unknown.
    """
    path = Path(find_weights(str(weights)))
    cfg = load_config(config, [*opts, "MODEL.WEIGHTS", str(path)])
    records = panoptic_records(Path(images) if images else None)
    model = OpenWorldSAM(cfg)
    if records:
        model.prompt_encoder.prepare()
    content = inspect_weights(path)
    about = {"config": str(config), "preset": cfg.PRESET, "versions": versions()}
    try:
        load_weights(model, cfg)
    except ValueError as error:
        return {**content, "loads": str(error), "fusions": None, **about}
    fusions = None
    if records:
        coco.register()
        dataset = evaluation_dataset(cfg, DATASET, records[: cfg.TEST.MAX_IMAGES or IMAGES])
        fusions = compare_fusions(model.to(usable_device(cfg.MODEL.DEVICE)), dataset)
    return {**content, "loads": "", "fusions": fusions, **about}


def run(args: argparse.Namespace) -> None:
    """Write the report; exit with status 1 if the file does not fit the config, 2 after a user error.

    Args:
        args: weights, images, config and opts as for `verify`; output, the folder of the report.
    """
    setup_logger(name="openworldsam")
    with user_errors():
        files = [output_file(args.output / f"verify.{suffix}") for suffix in ("md", "json")]
        content = verify(args.weights, args.images, args.config, args.opts)
        save_text(files[0], markdown(content))
        save_json(files[1], content, indent=1)
    say(*summary(content), *files)
    if content["loads"]:
        sys.exit(1)
