"""The demo: images and texts in, an overlay and a COCO-style json out for each image and task."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from openworldsam.checkpoint import provenance
from openworldsam.config import load_config
from openworldsam.data.datasets.shapes import configured_world, split_seed
from openworldsam.data.preprocessing import read_image
from openworldsam.data.shapes import expressions, render
from openworldsam.modeling import TASKS
from openworldsam.modeling.prompt_encoders import check_prompts
from openworldsam.parity.rule_weights import NOTE
from openworldsam.predictor.export import coco_annotations
from openworldsam.predictor.prediction import Prediction
from openworldsam.predictor.predictor import OpenWorldSAMPredictor
from openworldsam.utils.files import save_atomically
from openworldsam.utils.launch import user_errors, user_message
from openworldsam.visualization import at_drawn_size, contact_sheet, draw_prediction


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of tools/demo.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="such as configs/presets/released.yaml")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", type=Path, metavar="IMG", help="images")
    source.add_argument("--scene", type=int, metavar="N", help="a scene of the Shapes world instead")
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="what to segment; by default what a scene holds")
    parser.add_argument("--task", default="instance", choices=[*TASKS, "all"], help="instance by default")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument("--device", help="cpu, cuda or mps; MODEL.DEVICE by default")
    parser.add_argument(
        "--stuff",
        nargs="*",
        metavar="TEXT",
        help="prompts that name regions; by default COCO's stuff classes",
    )
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="override config keys")
    args = parser.parse_args(argv)
    if args.input and not args.prompts:
        parser.error("--input needs --prompts")
    return args


def render_scene(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Write the scene that is asked for as a picture, and ask for what it holds unless there are prompts.

    Args:
        cfg: describes the world.
        args: of the command line; gets input, and where they are not given prompts, stuff and sentences.

    Raises:
        ValueError: no such scene.
    """
    if args.scene < 0:
        raise ValueError(f"--scene is 0 or more, got {args.scene}")
    scene = render(configured_world(cfg), split_seed(cfg.DATASETS.SHAPES_SEED, "demo"), args.scene)
    path = args.output / f"scene{args.scene}.png"
    save_atomically(path, partial(Image.fromarray(scene.image).save, format="PNG"))
    args.input = [path]
    if args.prompts is None:
        args.prompts = list(dict.fromkeys(segment.name for segment in scene.segments))
        args.stuff = [segment.name for segment in scene.segments if not segment.is_thing]
        args.sentences = [texts[-1] for texts in expressions(scene).values()]


def coco_json(prediction: Prediction, file_name: str, info: dict[str, Any]) -> dict[str, Any]:
    """A prediction as a COCO dataset of one image: prompts are its categories, masks its annotations (RLE).

    Args:
        prediction: of an image.
        file_name: of that image.
        info: goes into "info", such as `checkpoint.provenance`.
    """
    height, width = prediction.label_map.shape
    annotations = [
        {"id": index, "image_id": 1, **annotation}
        for index, annotation in enumerate(coco_annotations(prediction), start=1)
    ]
    return {
        "info": {"task": prediction.task, "best_score": prediction.best_score, **info},
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "categories": [{"id": i + 1, "name": prompt} for i, prompt in enumerate(prediction.prompts)],
        "annotations": annotations,
    }


def segment_file(
    predictor: OpenWorldSAMPredictor, path: Path, tasks: Sequence[str], args: argparse.Namespace, note: str
) -> None:
    """Segment one image and write `<stem>_<task>.png` and `<stem>_<task>.json` for each task.

    Several tasks also give `<stem>_sheet.png`, the image and all of them side by side.
    """
    image = read_image(path)
    predictor.set_image(image)
    panels = [(path.name, at_drawn_size(image))]
    for task in tasks:
        prompts = args.sentences if task == "referring" and args.sentences else args.prompts
        prediction = predictor.predict(prompts, task, stuff=args.stuff)
        panels.append((f"{task}{note}", draw_prediction(image, prediction)))
        target = args.output / f"{path.stem}_{task}"
        _save_picture(panels[-1:], target, columns=1)
        content = json.dumps(coco_json(prediction, path.name, provenance(predictor.cfg, predictor.sources)))
        save_atomically(target.with_name(f"{target.name}.json"), partial(_write_text, content))
        print(f"{target}.png  {prediction.summary}")
    if len(tasks) > 1:
        _save_picture(panels, args.output / f"{path.stem}_sheet", columns=3)
        print(args.output / f"{path.stem}_sheet.png")


def _save_picture(panels: list[tuple[str, np.ndarray]], target: Path, columns: int) -> None:
    image = Image.fromarray(contact_sheet(panels, columns))
    save_atomically(target.with_name(f"{target.name}.png"), partial(image.save, format="PNG"))


def _write_text(content: str, path: Path) -> None:
    path.write_text(content)


def run(args: argparse.Namespace) -> int:
    """What the command line says.

    Returns:
        0; 1 if an image could not be read or its results not be written (the others are done); 2 if nothing was done.

    Raises:
        ValueError, OSError, KeyError: nothing could be begun.
    """
    args.sentences = []
    cfg = load_config(args.config_file, args.opts)
    if args.scene is not None:
        render_scene(cfg, args)
    args.prompts = [prompt.strip() for prompt in args.prompts]
    repeated = [stem for stem, count in Counter(path.stem for path in args.input).items() if count > 1]
    if repeated:
        raise ValueError(f"several images are named {repeated[0]}; their results would overwrite each other")
    check_prompts(args.prompts)
    predictor = OpenWorldSAMPredictor(cfg, device=args.device)
    notes = {source.note for source in predictor.sources.values() if source.note.startswith(NOTE)}
    if notes:
        print(f"These weights are {min(notes)}: the masks mean nothing.")
    tasks = TASKS if args.task == "all" else [args.task]
    failed = 0
    for path in args.input:
        try:
            segment_file(predictor, path, tasks, args, f" ({NOTE}: the masks mean nothing)" if notes else "")
        except (ValueError, OSError) as error:
            print(f"error: {user_message(error)}", file=sys.stderr)
            failed += 1
    return (2 if failed == len(args.input) else 1) if failed else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; exits with what `run` returns, with 2 after a user error, with 130 after Ctrl-C."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors("stopped"):
        if status := run(args):
            sys.exit(status)
