"""The command `openworldsam annotate`: segment a folder of images, write annotation files."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils import comm

from openworldsam.annotate.coco import write_coco
from openworldsam.annotate.cvat import check_labels, write_cvat
from openworldsam.annotate.images import FolderImages, LoadedImage, file_version, find_images
from openworldsam.annotate.label_studio import write_label_studio
from openworldsam.annotate.prompts import parse_prompts
from openworldsam.annotate.results import FolderResults
from openworldsam.checkpoint import load_weights, photograph_warning, provenance
from openworldsam.config import load_config
from openworldsam.engine.evaluate import identity
from openworldsam.evaluation.examples import Unreadable
from openworldsam.evaluation.saved import claim_folder
from openworldsam.inference import prompt_chunk
from openworldsam.modeling import OpenWorldSAM
from openworldsam.predictor.prediction import why_nothing
from openworldsam.predictor.request import Request
from openworldsam.utils.device import usable_device
from openworldsam.utils.files import save_text
from openworldsam.utils.launch import item_error, launch_command, log_to, say
from openworldsam.utils.locking import lock
from openworldsam.utils.progress import Progress
from openworldsam.utils.text import not_found, printable, shortened
from openworldsam.utils.workers import image_loader

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable.txt"
MAX_LISTED = 20
"""Prompts and failed images named in the summary; the files list all."""


def annotate_folder(args: argparse.Namespace) -> None:
    """Segment this process's share of the images; the first process also writes the files for all.

    Raises:
        SystemExit: on the first process, with 1 if images failed, with 2 if all did.
    """
    names = find_images(args.input, args.output)
    results = FolderResults(args.output, names, parse_prompts(args.prompts), args.task, args.overlays)
    if args.cvat:
        check_labels(results.prompts.texts)
    cfg = load_config(args.config, args.opts)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    first = comm.is_main_process()
    with lock(args.output / ".lock", f"another run writes to {args.output}") if first else nullcontext():
        log_to(args.output)
        model = OpenWorldSAM(cfg)
        model.prompt_encoder.prepare()
        sources = load_weights(model, cfg)
        rule, threshold = model.inference.score, model.inference.threshold_of(args.task)
        question = {"task": args.task, "prompts": list(results.prompts.texts), "things": list(results.prompts.is_thing)}
        claim_folder(args.output, {**question, **identity(cfg, model, sources)})
        if warning := photograph_warning(sources):
            logger.warning(warning)
        with inference_context(model.to(cfg.MODEL.DEVICE)), torch.no_grad():
            share = names[comm.get_rank() :: comm.get_world_size()]
            failed = predict_images(cfg, model, results, args.input, share)
        gathered = comm.gather(failed)  # waits for all processes
        if not first:
            return
        failed = dict(sorted(item for part in gathered for item in part.items()))
        score = {"rule": rule, "threshold": threshold}
        files = write_coco(results, {"task": args.task, "score": score, **provenance(cfg, sources)})
        files += write_label_studio(results, args.input) if args.label_studio else []
        files += write_cvat(results) if args.cvat else []
        save_text(args.output / UNREADABLE, "".join(f"{name}\t{reason}\n" for name, reason in failed.items()))
        say(*files, *summary(results, failed, threshold, rule))
        if failed:
            raise SystemExit(2 if len(failed) == len(names) else 1)


def predict_images(
    cfg: CfgNode, model: OpenWorldSAM, results: FolderResults, folder: Path, names: Sequence[str]
) -> dict[str, str]:
    """Predict the images of a folder that are not done yet, given their paths within it; the model is in eval mode.

    An image that cannot be read, predicted, drawn or saved stops no other; the next run tries it again.

    Returns:
        the reason for each failed image, by name; both printable.

    Raises:
        OSError: the disk is full or read-only.
    """
    todo = [name for name in names if not results.is_done(name, file_version(folder / name))]
    logger.info("%s images, %s of them are done", f"{len(names):,}", f"{len(names) - len(todo):,}")
    loader = image_loader(
        FolderImages(folder, todo),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS if todo else 0,
    )
    chunk = prompt_chunk(cfg, results.task == "referring")
    threshold = model.inference.threshold_of(results.task)
    request = Request(*results.prompts, results.task, model.inference, threshold)
    progress, failed = Progress(len(todo)), {}

    def attempt(images: Sequence[LoadedImage]) -> str:
        """Predict and save images; return what went wrong, if anything."""
        pixels = [image.pixels for image in images]
        try:
            for image, prediction in zip(images, request.batch(model, pixels, chunk), strict=True):
                results.save(image, prediction)
        except Exception as error:
            return item_error(error)
        return ""

    for batch in loader:
        images = [item for item in batch if isinstance(item, LoadedImage)]
        problems = [item for item in batch if not isinstance(item, LoadedImage)]
        if len(images) == 1 or attempt(images):  # if a batch fails, each image alone
            problems += [Unreadable(image.name, why) for image in images if (why := attempt([image]))]
        for name, reason in problems:
            results.forget(name)
            logger.warning("skipped %s: %s", name, reason)
            failed[printable(name)] = printable(reason)
        progress.update(len(batch), len(images) * len(results.prompts.texts))
    return failed


def summary(results: FolderResults, failed: Mapping[str, str], threshold: float, rule: str) -> list[str]:
    """Lines that count images and masks, explain images without a mask, and list failed images.

    A prompt that is found in no image is named with its best score.
    """
    found, images, empty, best_empty = Counter[int](), 0, 0, 0.0
    best: dict[str, float] = {}
    for _, record in results.records():
        images += 1
        found.update(annotation["category_id"] for annotation in record["annotations"])
        best |= {text: max(score, best.get(text, 0.0)) for text, score in record["not_found"].items()}
        if not record["annotations"]:
            empty, best_empty = empty + 1, max([best_empty, *record["not_found"].values()])
    texts = results.prompts.texts
    counts = [
        f"{shortened(text, 100)} {found[i] or (not_found(best[text], threshold) if text in best else 0)}"
        for i, text in enumerate(texts[:MAX_LISTED], start=1)
    ]
    lines = [f"{images:,} images: {', '.join(counts)}{', ...' if len(texts) > MAX_LISTED else ''}"]
    if empty:
        lines.append(f"{empty:,} of them have none: {why_nothing(results.task, threshold, best_empty, rule)}")
    if failed:
        lines.append(f"{len(failed):,} failed ({results.folder / UNREADABLE}); the same command tries them again:")
        lines += [f"  {name}: {reason}" for name, reason in list(failed.items())[:MAX_LISTED]]
    return lines


def run(args: argparse.Namespace) -> None:
    """Run the command; exit with 1 if images failed, 2 after a user error or if all failed, 130 after Ctrl-C."""
    processes = max(1, torch.cuda.device_count()) if args.processes is None else args.processes
    launch_command(annotate_folder, stopped="stopped; the same command goes on", args=(args,), num_gpus=processes)
