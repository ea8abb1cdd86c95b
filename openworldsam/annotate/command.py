"""The command openworldsam-annotate: a folder of pictures and a file of prompts in, annotation files out."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.utils.data import DataLoader

from openworldsam.annotate.coco import write_coco
from openworldsam.annotate.cvat import write_cvat
from openworldsam.annotate.label_studio import write_label_studio
from openworldsam.annotate.pictures import Picture, Pictures, Stamp, find_pictures
from openworldsam.annotate.predictions import predict_batch
from openworldsam.annotate.prompts import read_prompts
from openworldsam.annotate.results import Results
from openworldsam.checkpoint import load_weights, provenance
from openworldsam.config import load_config
from openworldsam.engine.evaluate import identity
from openworldsam.evaluation.saved import claim_folder
from openworldsam.inference import TASKS, prompt_chunk
from openworldsam.modeling import OpenWorldSAM
from openworldsam.predictor.prediction import why_nothing
from openworldsam.utils.device import usable_device
from openworldsam.utils.files import save_atomically
from openworldsam.utils.launch import launch_command
from openworldsam.utils.locking import lock
from openworldsam.utils.progress import Progress
from openworldsam.utils.workers import end_with_parent

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable.txt"
LISTED = 20
"""Prompts and unreadable pictures that the summary names; the files have all."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="openworldsam-annotate",
        description="Segment all pictures of a folder. Started again, it goes on where it was stopped.",
    )
    parser.add_argument("--config-file", required=True, help="such as configs/presets/released.yaml")
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="pictures, also in folders below")
    parser.add_argument(
        "--prompts", required=True, type=Path, metavar="FILE", help="one prompt a line, # comments, stuff: regions"
    )
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--overlays", action="store_true", help="also draw the masks over each picture")
    parser.add_argument("--label-studio", action="store_true", help="also write files for Label Studio")
    parser.add_argument("--cvat", action="store_true", help="also write files for CVAT")
    parser.add_argument(
        "--num-processes", type=int, default=max(1, torch.cuda.device_count()), help="one per GPU by default"
    )
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="override config keys")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """What every process runs; each takes its share of the pictures, the first writes the files of all.

    Raises:
        SystemExit: with 1 where pictures could not be read, on the first process.
    """
    names = find_pictures(args.input, args.output)
    results = Results(args.output, read_prompts(args.prompts), args.task, args.overlays)
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    first = comm.is_main_process()
    with lock(args.output / ".lock", f"another run writes to {args.output}") if first else nullcontext():
        setup_logger(str(args.output), comm.get_rank(), name="openworldsam")
        model = OpenWorldSAM(cfg)
        sources = load_weights(model, cfg)
        asked = {"task": args.task, "prompts": list(results.prompts.texts), "things": list(results.prompts.is_thing)}
        claim_folder(args.output, {**asked, **identity(cfg, sources)})
        with inference_context(model.to(cfg.MODEL.DEVICE)), torch.no_grad():
            unreadable = annotate(cfg, model, results, args.input, names[comm.get_rank() :: comm.get_world_size()])
        parts = comm.gather(unreadable)  # waits for all
        if not first:
            return
        unreadable = dict(sorted(item for part in parts for item in part.items()))
        written = write_files(args, results, names, {"task": args.task, **provenance(cfg, sources)})
        listed = "".join(f"{name}\t{reason}\n" for name, reason in unreadable.items())
        save_atomically(args.output / UNREADABLE, lambda partial: partial.write_text(listed, encoding="utf-8"))
        for partial in args.output.rglob(".*.part"):  # of runs that were killed while they wrote
            partial.unlink()
        threshold = model.inference.threshold_of(args.task)
        print("\n".join([*map(str, written), *summary(results, names, unreadable, threshold)]))
        if unreadable:
            raise SystemExit(1)


def annotate(cfg: CfgNode, model: OpenWorldSAM, results: Results, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Predict those of the pictures that are not done.

    Args:
        cfg: of the model; TEST.IMS_PER_BATCH pictures at a time, read ahead by DATALOADER.NUM_WORKERS processes.
        model: in eval mode.
        results: gets the predictions.
        folder: of the pictures.
        names: their paths within it.

    Returns:
        the reason of each that cannot be read, by name; both can be printed.
    """
    todo = [name for name in names if not results.is_done(name, Stamp.of(folder / name))]
    logger.info("%s pictures, %s of them are done", f"{len(names):,}", f"{len(names) - len(todo):,}")
    loader = DataLoader(
        Pictures(folder, todo),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS if todo else 0,
        collate_fn=list,
        worker_init_fn=end_with_parent,
    )
    chunk = prompt_chunk(cfg, results.task == "referring")
    progress, unreadable = Progress(len(todo)), {}
    for batch in loader:
        pictures = [picture for picture in batch if isinstance(picture, Picture)]
        for name, reason in (other for other in batch if not isinstance(other, Picture)):
            results.forget(name)
            # names may hold bytes that no text can
            shown, why = (text.encode(errors="replace").decode() for text in (name, reason))
            logger.warning("left out %s: %s", shown, why)
            unreadable[shown] = why
        images = [picture.image for picture in pictures]
        predictions = predict_batch(model, images, results.prompts, results.task, chunk)
        for picture, prediction in zip(pictures, predictions, strict=True):
            results.save(picture, prediction)
        progress.update(len(batch), len(pictures) * len(results.prompts.texts))
    return unreadable


def write_files(
    args: argparse.Namespace, results: Results, names: Sequence[str], info: Mapping[str, Any]
) -> list[Path]:
    """Write the files of all pictures that are done; returns them."""
    written = write_coco(results, names, info)
    if args.label_studio:
        written += write_label_studio(results, names, args.input)
    if args.cvat:
        written += write_cvat(results, names)
    return written


def summary(results: Results, names: Sequence[str], unreadable: Mapping[str, str], threshold: float) -> list[str]:
    """Lines: how many pictures and masks there are, how many pictures without a mask, and what could not be read.

    The threshold is that of the task, see `InferenceOptions.threshold_of`.
    """
    found, pictures, empty, best = Counter[int](), 0, 0, 0.0
    for _, record in results.records(names):
        pictures += 1
        found.update(annotation["category_id"] for annotation in record["annotations"])
        if not record["annotations"]:
            empty, best = empty + 1, max(best, record["best_score"])
    texts = results.prompts.texts
    counts = [f"{text} {found[i]}" for i, text in enumerate(texts[:LISTED], start=1)]
    lines = [f"{pictures:,} pictures: {', '.join(counts)}{', ...' if len(texts) > LISTED else ''}"]
    if empty:
        lines.append(f"{empty:,} of them have none: {why_nothing(results.task, threshold, best)}")
    if unreadable:
        lines.append(f"{len(unreadable):,} could not be read ({results.folder / UNREADABLE}):")
        lines += [f"  {name}: {reason}" for name, reason in list(unreadable.items())[:LISTED]]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes; exits with 1 if pictures could not be read, with 2 after a user error."""
    args = parse_args(argv)
    launch_command(run, stopped="stopped; the same command goes on", args=(args,), num_gpus=args.num_processes)
