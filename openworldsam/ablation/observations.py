"""What a model does with the things of a split: where its tie-breakers look, what the second stage changes.

Shapes: P prompts about things, K tie-breakers, R = P * K queries (query = prompt * K + tie-breaker), n distinct masks,
H, W size of the image.
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
"""A mask finds the thing that it overlaps with a larger IoU."""
SHOWN = 6
"""Objects that are kept to be drawn."""


class Stages(NamedTuple):
    """A thing that was found: IoU with the ground truth and predicted IoU, before and after the second stage."""

    iou: float
    new_iou: float
    score: float
    new_score: float


class Closeup(NamedTuple):
    """The part of an image around a thing: uint8 [h, w, 3], truth bool [h, w], logits of both stages [h, w]."""

    image: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray
    stages: Stages


@dataclass
class Observations:
    """
    centres: for each tie-breaker, x and y in 0..1 of each of its confident masks, duplicates included.
    found: the things that the first stage finds.
    closeups: the first of them in each image, as far as they are wanted.
    """

    centres: list[list[tuple[float, float]]]
    found: list[Stages] = field(default_factory=list)
    closeups: list[Closeup] = field(default_factory=list)


@torch.no_grad()
def decode_queries(model: OpenWorldSAM, image: Tensor, prompts: list[str]) -> tuple[ImageFeatures, Queries]:
    """Decode prompts about one image, uint8 [3, H, W], in one stage; the queries are labelled by prompt."""
    pixels = [image.to(model.device)]
    features = model.encode_images(pixels)
    image_index = torch.zeros(len(prompts), dtype=torch.long)
    embeddings = model.encode_prompts(model.prompt_inputs(pixels), prompts, image_index)
    return features, model.queries(features, embeddings)


def distinct(model: OpenWorldSAM, queries: Queries, size: tuple[int, int]) -> Tensor:
    """Indices [n] of the confident queries that are no duplicate of a better one of their prompt, the best first."""
    confident = torch.nonzero(queries.scores >= model.inference.score_threshold)[:, 0]
    return confident[mask_nms(queries.select(confident), size, model.inference.nms_threshold, positive)[0]]


def full_size(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Mask logits [n, h, w] at full size, [n, H, W]."""
    return torch.cat([logits.new_zeros(0, *size), *(part for _, part in upsampled(logits, size))]).cpu().numpy()


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks, bool [H, W]."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def observe(model: OpenWorldSAM, dataset: EvaluationDataset, images: int) -> Observations:
    """Ask for the things of the first images of a split, under oracle prompts."""
    seen = Observations([[] for _ in range(model.adapter.num_queries)])
    images = min(images, len(dataset))
    progress = Progress(images)
    for index in range(images):
        example = dataset[index]
        classes = (
            [c for c in example.inputs["class_ids"] if dataset.is_thing[c]] if isinstance(example, Example) else []
        )
        if isinstance(example, Example) and classes:
            names = [dataset.class_names[c] for c in classes]
            features, queries = decode_queries(model, example.inputs["image"], names)
            _add_centres(seen, queries, model.inference.score_threshold)
            by_class = queries._replace(labels=torch.tensor(classes)[queries.labels])
            _add_found(seen, model, features, by_class, example)
        progress.update(1, len(classes))
    return seen


def _add_centres(seen: Observations, queries: Queries, threshold: float) -> None:
    masks = positive(queries.logits).cpu()
    for query in torch.nonzero((queries.scores >= threshold) & masks.flatten(1).any(dim=1))[:, 0].tolist():
        y, x = (torch.nonzero(masks[query]).float().mean(dim=0) + 0.5) / torch.tensor(masks.shape[1:])
        seen.centres[query % len(seen.centres)].append((float(x), float(y)))


@torch.no_grad()
def _add_found(
    seen: Observations, model: OpenWorldSAM, features: ImageFeatures, queries: Queries, example: Example
) -> None:
    """Pass the distinct masks of an image, labelled by class, through the second stage; compare both with the truth."""
    size = (example.inputs["height"], example.inputs["width"])
    first = queries.select(distinct(model, queries, size))
    with model.autocast():
        logits, scores = model.mask_decoder.refine(features, torch.zeros(len(first.scores)).long(), first.logits)
    before, after = full_size(first.logits, size), full_size(logits, size)
    wanted = len(seen.closeups) < SHOWN
    for segment in example.truth.segments:
        true = example.truth.segment_map == segment["id"]
        own = torch.nonzero(first.labels == segment["category_id"])[:, 0].tolist()
        # the best score comes first
        n = next((n for n in own if mask_iou(before[n] > 0, true) > FOUND), None)
        if n is None:
            continue
        ious = mask_iou(before[n] > 0, true), mask_iou(after[n] > 0, true)
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
    """Share of the variance of all centres that lies between tie-breakers, 0..1; None if they do not vary."""
    groups = [np.array(own) for own in centres if own]
    points = np.concatenate(groups) if groups else np.zeros((1, 2))
    total = float(((points - points.mean(axis=0)) ** 2).sum())
    within = sum(float(((own - own.mean(axis=0)) ** 2).sum()) for own in groups)
    return 1 - within / total if total else None
