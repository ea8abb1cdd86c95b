"""Measures a model on the things of a split: which are found, mask centres of each tie-breaker, the second stage.

Shapes: K tie-breakers, R queries of an image (query = prompt * K + tie-breaker), n distinct masks, H, W image size,
h, w size of mask logits or of a close-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from openworldsam.evaluation.examples import EvaluationDataset, Example
from openworldsam.evaluation.metrics.instance import FOUND
from openworldsam.inference import Queries
from openworldsam.inference.nms import mask_nms
from openworldsam.inference.queries import positive, upsampled
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.utils.progress import Progress

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


class Equal(NamedTuple):
    """An image, by its place in the split, with several things of a class: their number, and how many are found."""

    image: int
    class_id: int
    things: int
    found: int


@dataclass
class Observations:
    """Measurements over a split.

    equal: every class of which an image has several things.
    centres: for each tie-breaker, (x, y) in 0..1 of its confident masks, duplicates included.
    found: things that the first stage finds.
    closeups: the first such thing of each image, at most SHOWN.
    """

    centres: list[list[tuple[float, float]]]
    equal: list[Equal] = field(default_factory=list)
    found: list[Stages] = field(default_factory=list)
    closeups: list[Closeup] = field(default_factory=list)


@torch.no_grad()
def decode_things(model: OpenWorldSAM, example: Example) -> tuple[ImageFeatures, Queries]:
    """Prompt an image with its classes of things, at least one, in one stage; the queries are labelled by class."""
    inputs = example.inputs
    asked = zip(inputs["prompts"], inputs["class_ids"], inputs["is_thing"], strict=True)
    prompts, classes = zip(*((prompt, class_id) for prompt, class_id, thing in asked if thing), strict=True)
    pixels = [inputs["image"].to(model.device)]
    features = model.encode_images(pixels)
    image_index = torch.zeros(len(prompts), dtype=torch.long)
    embeddings = model.encode_prompts(model.prompt_inputs(pixels), list(prompts), image_index)
    queries = model.queries(features, embeddings).by_rule(model.inference.score)
    return features, queries._replace(labels=torch.tensor(classes)[queries.labels])


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


def true_things(example: Example) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the class and mask, bool [H, W], of each thing in the ground truth of an image; no crowds."""
    is_thing = dict(zip(example.inputs["class_ids"], example.inputs["is_thing"], strict=True))
    for segment in example.truth.segments:
        if is_thing.get(segment["category_id"]) and not segment["iscrowd"]:
            yield segment["category_id"], example.truth.segment_map == segment["id"]


def observe(model: OpenWorldSAM, dataset: EvaluationDataset, images: int) -> Observations:
    """Prompt the first images of a split with their classes of things and measure the results."""
    seen = Observations([[] for _ in range(model.adapter.num_queries)])
    images = min(images, len(dataset))
    progress = Progress(images)
    for index in range(images):
        example, prompts = dataset[index], 0
        if isinstance(example, Example) and (prompts := sum(example.inputs["is_thing"])):
            features, queries = decode_things(model, example)
            masks = positive(queries.logits).cpu()
            shown = (queries.scores >= model.inference.score_threshold) & masks.flatten(1).any(dim=1)
            for query in shown.nonzero()[:, 0].tolist():
                y, x = (masks[query].nonzero().float().mean(dim=0) + 0.5) / torch.tensor(masks.shape[1:])
                seen.centres[query % len(seen.centres)].append((float(x), float(y)))
            there, found = _count_found(seen, model, features, queries, example)
            seen.equal += [Equal(index, c, number, found[c]) for c, number in there.items() if number > 1]
        progress.update(1, prompts)
    return seen


@torch.no_grad()
def _count_found(
    seen: Observations, model: OpenWorldSAM, features: ImageFeatures, queries: Queries, example: Example
) -> tuple[Counter[int], Counter[int]]:
    """Compare the distinct masks of an image with the ground truth, before and after the second stage.

    Returns:
        the numbers of things, and of things that the first stage finds, by class.
    """
    there, found = Counter[int](), Counter[int]()
    size = (example.inputs["height"], example.inputs["width"])
    first = queries.select(distinct(model, queries, size))
    with model.autocast():
        logits, scores = model.mask_decoder.refine(features, first.logits)
    before, after = full_size(first.logits, size), full_size(logits, size)
    wanted = len(seen.closeups) < SHOWN
    for class_id, true in true_things(example):
        there[class_id] += 1
        candidates = torch.nonzero(first.labels == class_id)[:, 0].tolist()  # best score first
        n = next((n for n in candidates if pair_iou(before[n] > 0, true) > FOUND), None)
        if n is None:
            continue
        ious = pair_iou(before[n] > 0, true), pair_iou(after[n] > 0, true)
        stages = Stages(*ious, float(first.scores[n]), float(scores[n]))
        seen.found.append(stages)
        found[class_id] += 1
        if wanted:
            seen.closeups.append(_closeup(example, true, before[n], after[n], stages))
            wanted = False
    return there, found


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
