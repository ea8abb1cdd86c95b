"""Masks of a model under each fusion of decoder tokens: the fusion it was trained with gives the best ones.

The fusions share all weights, so a checkpoint does not tell which of them it was trained with.

Shapes: P prompts of an image, N ground-truth masks of a prompt, H, W size of the image.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import inference_context
from torch import Tensor

from openworldsam.data.datasets import coco
from openworldsam.data.datasets.catalog import dataset_root
from openworldsam.data.records.panoptic import PanopticRecord, load_panoptic
from openworldsam.evaluation.calibration import true_masks
from openworldsam.evaluation.examples import EvaluationDataset, Example, Unreadable
from openworldsam.inference import Queries
from openworldsam.inference.queries import upsampled
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.modeling.adapter import FUSIONS
from openworldsam.modeling.criterion import paired_iou
from openworldsam.utils.device import upload
from openworldsam.utils.files import find_missing
from openworldsam.utils.progress import Progress

LAYOUTS = (
    ("annotations/panoptic_val2017.json", "val2017", "panoptic_val2017"),
    ("coco/annotations/panoptic_val2017.json", "coco/val2017", "coco/panoptic_val2017"),
    ("panoptic.json", "images", "panoptic"),
)
"""Possible places in a folder of the list of images, the images, and the panoptic PNGs."""
IMAGES = 20
"""Images that are scored unless TEST.MAX_IMAGES says otherwise."""
LEAST_IMAGES, LEAST_ERRORS, LEAST_IOU = 5, 3.0, 30.0
"""A fusion is ruled out from this number of images on, if it is this many standard errors behind the best. Nothing is
said about a model whose mean IoU (%) is below the third number under every fusion: it does not find what it is asked
for."""


def panoptic_records(folder: Path | None) -> list[PanopticRecord]:
    """List COCO panoptic images whose files are in a folder, by default in DETECTRON2_DATASETS, which may have none.

    Raises:
        FileNotFoundError: the given folder has none.
        ValueError: a list of images is damaged.
    """
    root, records = folder or dataset_root(), []
    for place in LAYOUTS:
        json_file, image_root, panoptic_root = (root / part for part in place)
        with contextlib.suppress(FileNotFoundError):
            records += load_panoptic(json_file, image_root, panoptic_root, categories=coco.CATEGORIES)
    missing = set(find_missing(file for record in records for file in record.files()))
    found = [record for record in records if missing.isdisjoint(record.files())]
    if folder and not found:
        places = " or ".join(f"{json_file} with {' and '.join(roots)}" for json_file, *roots in LAYOUTS)
        raise FileNotFoundError(f"{folder} has no COCO panoptic images: no {places}")
    return found


def compare_fusions(model: OpenWorldSAM, dataset: EvaluationDataset) -> dict[str, Any]:
    """Score a model under each fusion; images and prompts are encoded once for all of them.

    Args:
        model: on its device; its own fusion is restored.
        dataset: with panoptic ground truth.

    Returns:
        images: number of images scored; skipped: the reason by file name of others; mean_iou by fusion: over images, of
        `best_iou`; the entries of `rank`.
    """
    ious: dict[str, list[float]] = {fusion: [] for fusion in FUSIONS}
    skipped, own, progress = {}, model.adapter.fusion, Progress(len(dataset))
    with inference_context(model), torch.no_grad():
        for index in range(len(dataset)):
            example = dataset[index]
            truth = [] if isinstance(example, Unreadable) else true_masks(example)
            if isinstance(example, Unreadable) or not any(masks is not None and len(masks) for masks in truth):
                reason = example.reason if isinstance(example, Unreadable) else "no object that is not a crowd"
                skipped[str(dataset.records[index]["file_name"])] = reason
                continue
            features, embeddings = _encode(model, example)
            for fusion in FUSIONS:
                model.adapter.fusion = fusion
                ious[fusion].append(best_iou(model.queries(features, embeddings), truth))
            model.adapter.fusion = own
            progress.update(1, len(truth))
    means = {fusion: fmean(each) if each else None for fusion, each in ious.items()}
    return {"images": len(ious[own]), "skipped": skipped, "mean_iou": means, **rank(ious)}


def _encode(model: OpenWorldSAM, example: Example) -> tuple[ImageFeatures, Tensor]:
    images, prompts = [upload(example.inputs["image"], model.device)], example.inputs["prompts"]
    embeddings = model.encode_prompts(model.prompt_inputs(images), prompts, torch.zeros(len(prompts), dtype=torch.long))
    return model.encode_images(images), embeddings


def best_iou(queries: Queries, truth: Sequence[np.ndarray | None]) -> float:
    """Mean over the ground-truth masks of an image of the IoU (%) with the best of their prompts' queries.

    Args:
        queries: of P prompts.
        truth: P times bool [N, H, W], or None for a prompt that does not count; at least one mask.
    """
    best: list[float] = []
    for prompt, masks in enumerate(truth):
        if masks is None or not len(masks):
            continue
        logits = queries.select((queries.labels == prompt).nonzero()[:, 0]).logits
        targets = torch.from_numpy(masks).to(logits.device).flatten(1).float()
        sized = upsampled(logits, (masks.shape[1], masks.shape[2]))
        best += torch.cat([paired_iou(full.flatten(1), targets) for _, full in sized]).amax(dim=0).tolist()
    return 100 * fmean(best)


def rank(ious: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Compare fusions by the mean IoU (%) of each image.

    Returns:
        best: the fusion with the largest mean, None without images; leads: by other fusion, the mean of the images'
        differences and its standard error, None for fewer than two images.
    """
    order = sorted((fusion for fusion in ious if ious[fusion]), key=lambda fusion: -fmean(ious[fusion]))
    leads = {}
    for other in order[1:]:
        differences = [a - b for a, b in zip(ious[order[0]], ious[other], strict=True)]
        error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
        leads[other] = {"mean": fmean(differences), "error": error}
    return {"best": order[0] if order else None, "leads": leads}


def verdict(found: Mapping[str, Any]) -> str:
    """Say in a sentence which fusion weights were trained with, from the result of `compare_fusions`."""
    images, best, leads = found["images"], found["best"], found["leads"]
    if best is None:
        return "fusion: not decided, no image could be scored"
    if (iou := found["mean_iou"][best]) < LEAST_IOU:
        return f"fusion: not decided, none finds what it is asked for (best: {best}, mean IoU {iou:.1f} %)"
    out = {f: d for f, d in leads.items() if images >= LEAST_IMAGES and d["mean"] > LEAST_ERRORS * d["error"]}
    left = [best, *(fusion for fusion in leads if fusion not in out)]
    behind = ", ".join(f"{fusion} is {d['mean']:.1f} ± {d['error']:.1f} points behind" for fusion, d in out.items())
    if len(left) == 1:
        return f"fusion: trained with {best} ({images} images, mean IoU {iou:.1f} %; {behind})"
    more = f"{images} images do not tell {' from '.join(left)}; -o TEST.MAX_IMAGES {5 * images} takes more"
    return f"fusion: not decided, {more}" + (f"; {behind}" if out else "")
