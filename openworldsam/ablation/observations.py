"""Measures a model on the things of a split: mask centres of each tie-breaker, and the effect of the second stage.

Shapes: K tie-breakers, R queries of an image (query = prompt * K + tie-breaker), n distinct masks, H, W image size,
h, w size of mask logits or of a close-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from openworldsam.evaluation.examples import EvaluationDataset, Example
from openworldsam.inference import Queries
from openworldsam.inference.nms import mask_nms
from openworldsam.inference.queries import positive, upsampled
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.utils.progress import Progress

FOUND = 0.5
"""A mask finds a thing if their IoU is larger."""
SHOWN = 6
"""Most close-ups to draw."""


class Stages(NamedTuple):
    """IoU with the ground truth and predicted IoU of a thing that was found, before and after the second stage."""

    iou: float
    new_iou: float
    score: float
    new_score: float


class Closeup(NamedTuple):
    """Crop around a thing: image uint8 [h, w, 3], ground truth bool [h, w], logits of both stages [h, w]."""

    image: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray
    stages: Stages


@dataclass
class Observations:
    """Measurements over a split.

    centres: for each tie-breaker, (x, y) in 0..1 of its confident masks, duplicates included.
    found: things that the first stage finds.
    closeups: the first such thing of each image, at most SHOWN.
    """

    centres: list[list[tuple[float, float]]]
    found: list[Stages] = field(default_factory=list)
    closeups: list[Closeup] = field(default_factory=list)


@torch.no_grad()
def decode_queries(model: OpenWorldSAM, image: Tensor, prompts: list[str]) -> tuple[ImageFeatures, Queries]:
    """Decode prompts on one image, uint8 [3, H, W], in one stage; the queries are labelled by prompt."""
    pixels = [image.to(model.device)]
    features = model.encode_images(pixels)
    image_index = torch.zeros(len(prompts), dtype=torch.long)
    embeddings = model.encode_prompts(model.prompt_inputs(pixels), prompts, image_index)
    return features, model.queries(features, embeddings).by_rule(model.inference.score)


def distinct(model: OpenWorldSAM, queries: Queries, size: tuple[int, int]) -> Tensor:
    """Return the indices [n] of confident queries without duplicates within their label, best first."""
    confident = torch.nonzero(queries.scores >= model.inference.score_threshold)[:, 0]
    return confident[mask_nms(queries.select(confident), size, model.inference.nms_threshold, positive)[0]]


def full_size(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Upsample mask logits [n, h, w] to [n, H, W]."""
    return torch.cat([logits.new_zeros(0, *size), *(part for _, part in upsampled(logits, size))]).cpu().numpy()


def pair_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two masks, bool [H, W]; 0 if both are empty."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def observe(model: OpenWorldSAM, dataset: EvaluationDataset, images: int) -> Observations:
    """Prompt the first images of a split with their thing classes and measure the results."""
    seen = Observations([[] for _ in range(model.adapter.num_queries)])
    images = min(images, len(dataset))
    progress = Progress(images)
    for index in range(images):
        example = dataset[index]
        things = [c for c in example.inputs["class_ids"] if dataset.is_thing[c]] if isinstance(example, Example) else []
        if isinstance(example, Example) and things:
            names = [dataset.class_names[c] for c in things]
            features, queries = decode_queries(model, example.inputs["image"], names)
            masks = positive(queries.logits).cpu()
            shown = (queries.scores >= model.inference.score_threshold) & masks.flatten(1).any(dim=1)
            for query in shown.nonzero()[:, 0].tolist():
                y, x = (masks[query].nonzero().float().mean(dim=0) + 0.5) / torch.tensor(masks.shape[1:])
                seen.centres[query % len(seen.centres)].append((float(x), float(y)))
            by_class = queries._replace(labels=torch.tensor(things)[queries.labels])
            _add_found(seen, model, features, by_class, example)
        progress.update(1, len(things))
    return seen


@torch.no_grad()
def _add_found(
    seen: Observations, model: OpenWorldSAM, features: ImageFeatures, queries: Queries, example: Example
) -> None:
    """Refine the distinct masks of an image, labelled by class, and compare both stages with the ground truth."""
    size = (example.inputs["height"], example.inputs["width"])
    first = queries.select(distinct(model, queries, size))
    with model.autocast():
        logits, scores = model.mask_decoder.refine(features, first.logits)
    before, after = full_size(first.logits, size), full_size(logits, size)
    wanted = len(seen.closeups) < SHOWN
    for segment in example.truth.segments:
        true = example.truth.segment_map == segment["id"]
        candidates = torch.nonzero(first.labels == segment["category_id"])[:, 0].tolist()  # best score first
        n = next((n for n in candidates if pair_iou(before[n] > 0, true) > FOUND), None)
        if n is None:
            continue
        ious = pair_iou(before[n] > 0, true), pair_iou(after[n] > 0, true)
        stages = Stages(*ious, float(first.scores[n]), float(scores[n]))
        seen.found.append(stages)
        if wanted:
            seen.closeups.append(_closeup(example, true, before[n], after[n], stages))
            wanted = False


def _closeup(example: Example, true: np.ndarray, before: np.ndarray, after: np.ndarray, stages: Stages) -> Closeup:
    ys, xs = np.nonzero(true)
    margin = 8 + int(max(np.ptp(ys), np.ptp(xs))) // 4
    part = tuple(slice(max(0, axis.min() - margin), axis.max() + margin) for axis in (ys, xs))
    image = example.inputs["image"].permute(1, 2, 0).numpy()
    return Closeup(image[part], true[part], before[part], after[part], stages)


def specialisation(centres: Sequence[Sequence[tuple[float, float]]]) -> float | None:
    """Return the share (0..1) of the variance of all centres that is between tie-breakers; None if there is none."""
    groups = [np.array(group) for group in centres if group]
    points = np.concatenate(groups) if groups else np.zeros((1, 2))
    total = float(((points - points.mean(axis=0)) ** 2).sum())
    within = sum(float(((group - group.mean(axis=0)) ** 2).sum()) for group in groups)
    return 1 - within / total if total else None
