"""The command `openworldsam segment`: an overlay and a COCO JSON for each image and task."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from openworldsam.annotate.prompts import parse_prompts
from openworldsam.checkpoint import provenance
from openworldsam.config import load_config
from openworldsam.data.datasets.shapes import demo_scene
from openworldsam.data.preprocessing import read_image
from openworldsam.data.shapes import expressions
from openworldsam.inference import TASKS
from openworldsam.parity.rule_weights import NOTE
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.utils.files import save_json, save_png
from openworldsam.utils.launch import item_error, say, user_errors
from openworldsam.utils.progress import progress_of_prompts
from openworldsam.visualization import contact_sheet, draw_comparison, draw_prediction


def use_scene(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Save the requested scene as `args.input`; without prompts, set prompts, stuff and sentences.

    The prompts are all that the scene has, and a shape that it does not have.
    """
    scene = demo_scene(cfg, args.scene)
    args.input = [args.output / f"scene{args.scene}.png"]
    save_png(args.input[0], scene.image)
    if args.prompts is None:
        present = list(dict.fromkeys(segment.name for segment in scene.segments))
        args.prompts = present + [shape for shape in cfg.DATASETS.SHAPES.SHAPES if shape not in present][:1]
        args.stuff = [segment.name for segment in scene.segments if not segment.is_thing]
        args.sentences = [texts[-1] for texts in expressions(scene).values()]


def segment_image(
    predictor: OpenWorldSAMPredictor, path: Path, tasks: Sequence[str], args: argparse.Namespace, note: str
) -> None:
    """Segment one image; write `<stem>_<task>.png` and `<stem>_<task>.json` for each task.

    Several tasks also give `<stem>_sheet.png`, which shows the image and all masks side by side.
    """
    image = read_image(path)
    predictor.set_image(image)
    predictions = {}
    for task in tasks:
        prompts = args.sentences if task == "referring" and args.sentences else args.prompts
        prediction = predictor.predict(prompts, task, stuff=args.stuff)
        title = f"{task}{note}"
        predictions[title] = prediction
        overlay = args.output / f"{path.stem}_{task}.png"
        save_png(overlay, contact_sheet([(title, draw_prediction(image, prediction))], columns=1))
        info = provenance(predictor.cfg, predictor.sources)
        save_json(overlay.with_suffix(".json"), prediction.to_coco(path.name, info))
        say(f"{overlay}  {prediction.summary}")
    if len(tasks) > 1:
        sheet = args.output / f"{path.stem}_sheet.png"
        save_png(sheet, draw_comparison(image, path.name, predictions))
        say(sheet)


def segment_images(args: argparse.Namespace) -> int:
    """Segment all images of the command line.

    Returns:
        the exit status: 0; 1 if some images failed, at whatever stage; 2 if all did.

    Raises:
        ValueError, OSError, KeyError: config, weights, prompts or output are unusable.
    """
    args.sentences = []
    args.output.mkdir(parents=True, exist_ok=True)  # an error before the work
    cfg = load_config(args.config, args.opts)
    if args.scene is not None:
        use_scene(cfg, args)
    args.prompts, is_thing = parse_prompts(args.prompts)
    if args.stuff is None:
        args.stuff = [text for text, thing in zip(args.prompts, is_thing, strict=True) if not thing]
    stem, count = Counter(path.stem for path in args.input).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} images are named {stem}; their results would overwrite each other")
    predictor = OpenWorldSAMPredictor(cfg, device=args.device)
    notes = {source.note for source in predictor.sources.values() if source.note.startswith(NOTE)}
    if notes:
        say(f"These weights are {min(notes)}: the masks mean nothing.")
    if args.scene is not None:
        predictor.photograph_warning = ""
    tasks = [*TASKS] if args.task == "all" else [args.task]
    failed = 0
    for path in args.input:
        try:
            with progress_of_prompts():
                segment_image(predictor, path, tasks, args, f" ({NOTE}: the masks mean nothing)" if notes else "")
        except Exception as error:
            say(f"error: {item_error(error, path)}", file=sys.stderr)
            failed += 1
    return (2 if failed == len(args.input) else 1) if failed else 0


def run(args: argparse.Namespace) -> None:
    """Run the command; exit with the status of `segment_images`, 2 after a user error, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors():
        if status := segment_images(args):
            sys.exit(status)
