"""The command openworldsam calibrate, and its part of the page about evaluations."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from openworldsam.checkpoint import component_files, load_weights, provenance, store_thresholds
from openworldsam.config import load_config
from openworldsam.engine.checks import check_evaluation
from openworldsam.evaluation.calibration import RIGHT, calibrate
from openworldsam.evaluation.summary import number
from openworldsam.inference import SCORES
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.components import SCORE_HEAD
from openworldsam.report.charts import reliability
from openworldsam.report.html import Html, join, note
from openworldsam.report.page import figure_html, html_table
from openworldsam.utils.device import usable_device
from openworldsam.utils.files import output_file, read_json, save_atomically, save_json
from openworldsam.utils.launch import launch_command, log_to, say
from openworldsam.utils.versions import versions

RESULTS, DIAGRAM = "calibration.json", "calibration.png"
PROTOCOL = "present+absent"
COLUMNS = {"ece": ".3f", "auc": ".3f", "threshold": ".2f", "f1": ".3f"}
"""Numbers of each score that the table shows, with their formats."""


def calibrate_scores(args: argparse.Namespace) -> None:
    """Calibrate as the command line says, on every process; the first writes the files.

    Raises:
        ValueError: DATASETS.HELD_OUT is empty or has no query; or the thresholds are to be stored, and there is no
            score head, it finds nothing, or the split is also trained or tested on.
    """
    start = time.monotonic()
    cfg = load_config(args.config, args.opts)
    held_out = list(cfg.DATASETS.HELD_OUT)
    if not held_out:
        raise ValueError("nothing to calibrate on: DATASETS.HELD_OUT is empty")
    if args.store and (shared := {*held_out} & {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}):
        raise ValueError(
            f"{', '.join(sorted(shared))} is also trained or tested on, so it chooses no threshold to store"
        )
    cfg.DATASETS.TEST, cfg.TEST.PROTOCOL = held_out, PROTOCOL
    check_evaluation(cfg)
    path = output_file(args.output / RESULTS)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    log_to(args.output)
    model = OpenWorldSAM(cfg)
    model.prompt_encoder.prepare()
    sources = load_weights(model, cfg)
    if args.store and model.score_head is None:
        raise ValueError("there is no score head to store thresholds with: set MODEL.SCORE_HEAD.HIDDEN and its weights")
    calibration = calibrate(cfg, model.to(cfg.MODEL.DEVICE))
    if calibration is None:
        return
    content = {
        **{"datasets": held_out, "protocol": PROTOCOL, **calibration.content()},
        **provenance(cfg, sources),
        **{"versions": versions(), "command": args.command, "seconds": round(time.monotonic() - start, 1)},
    }
    save_json(path, content, indent=1)
    figure = reliability(content["scores"])
    save_atomically(args.output / DIAGRAM, lambda part: figure.savefig(part, format="png", dpi=110))
    for rule, found in content["scores"].items():
        say(f"{rule}: " + ", ".join(f"{key} {number(found[key], form)}" for key, form in COLUMNS.items()))
    say(path, *([_store(cfg, model, content["scores"])] if args.store else []))


def _store(cfg: CfgNode, model: OpenWorldSAM, scores: dict[str, Any]) -> Path:
    """Write the thresholds of the scores that need the head into its file; return its path."""
    thresholds = {rule: found["threshold"] for rule, found in scores.items() if rule != "iou"}
    if None in thresholds.values():
        raise ValueError(f"no mask is right at any threshold, so there is none to store: {thresholds}")
    file = component_files(cfg, model.components)[SCORE_HEAD.name]
    store_thresholds(file.path, file, thresholds)
    return file.path


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """Read the calibration.json of a folder; None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    content = read_json(path)
    try:
        texts = [content["protocol"], *content["datasets"]]
        numbers = [content[key] for key in ("images", "queries", "right")]
        for rule, found in content["scores"].items():
            texts.append(SCORES[rule])
            numbers += [found["ece"], found["f1"], found["auc"] or 0, found["threshold"] or 0]
            for each in found["bins"]:
                keys = ("queries", "right", "score", "iou") if each["queries"] else ("queries", "right")
                numbers += [each[key] for key in keys]
        ", ".join(texts).encode()
        if not content["scores"] or not all(map(math.isfinite, numbers)):
            raise TypeError("no score, or an infinite number")
    except (KeyError, TypeError, AttributeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"{path} is not what openworldsam calibrate writes; calibrate again") from error
    return content


def calibration_html(content: dict[str, Any], name: str) -> Html:
    """Show the reliability diagram and the numbers of a run's calibration."""
    split = f"{', '.join(content['datasets'])}, {content['protocol']}: {content['images']} images"
    right = f"{content['queries']} queries, {content['right']} with an IoU above {RIGHT:g}"
    rows = [
        (SCORES[rule], *(number(found[key], form) for key, form in COLUMNS.items()))
        for rule, found in content["scores"].items()
    ]
    table = html_table(("score", "expected calibration error", "AUC", "best threshold", "F1"), rows, len(COLUMNS))
    return join((note(f"{name}: {split}, {right}."), table, figure_html(reliability(content["scores"]), "Calibration")))


def run(args: argparse.Namespace) -> None:
    """Run the command; exits with 2 after a user error."""
    launch_command(calibrate_scores, args=(args,), num_gpus=args.processes)
