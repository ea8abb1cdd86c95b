"""Parity of post-processing alone, on masks made by formula (rotated ellipses)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openworldsam.config import load_config
from openworldsam.inference import (
    InferenceOptions,
    InstanceResult,
    PanopticResult,
    Queries,
    Question,
    infer,
    semantic_scores,
)
from openworldsam.parity.checks import Check, align_ties, close, equal, same_map

NUM_CLASSES, NUM_THINGS = 133, 80
"""COCO panoptic; contiguous ids below 80 are things."""
SIDE = 256


def released_options(golden: np.lib.npyio.NpzFile) -> InferenceOptions:
    """The inference options of preset `released` with the thresholds of a golden file."""
    cfg = load_config(Path(__file__).parents[2] / "configs/presets/released.yaml")
    cfg.MODEL.INFERENCE.SCORE_THRESHOLD = float(golden["iou_threshold"])
    cfg.MODEL.INFERENCE.NMS_THRESHOLD = float(golden["nms_threshold"])
    return InferenceOptions.from_config(cfg)


def ellipse_queries(seed: int, num_prompts: int, num_queries: int = 20) -> Queries:
    """Queries whose masks are rotated ellipses, some of them near duplicates, some turned by 90 degrees."""
    num_rows = num_prompts * num_queries
    u = np.random.Generator(np.random.Philox(key=seed)).random((num_rows, 6), dtype=np.float32)
    f32 = np.float32
    cx, cy, ra = f32(256) * u[:, 0], f32(256) * u[:, 1], f32(20) + f32(70) * u[:, 2]
    rb, theta = ra * (f32(0.15) + f32(0.5) * u[:, 4]), f32(np.pi) * u[:, 5]
    scores = f32(0.3) + f32(0.69) * u[:, 3]
    scores[10] = f32(0.7)
    ellipses = np.stack([cx, cy, ra, rb, theta])
    for q in range(num_rows):
        if q % 4 == 3:
            ellipses[:, q] = ellipses[:, q - 1]
            ellipses[0, q] += f32(3)
        elif q % 4 == 1:
            ellipses[:, q] = ellipses[:, q - 1]
            ellipses[4, q] += f32(np.pi / 2)
    cx, cy, ra, rb, theta = (row[:, None, None] for row in ellipses)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    s = (x - cx) * np.cos(theta) + (y - cy) * np.sin(theta)
    t = -(x - cx) * np.sin(theta) + (y - cy) * np.cos(theta)
    logits = np.clip(f32(8) * (1 - np.sqrt((s / ra) ** 2 + (t / rb) ** 2)), -12, 12).astype(np.float32)
    labels = torch.arange(num_prompts).repeat_interleave(num_queries)
    return Queries(torch.from_numpy(logits), torch.from_numpy(scores), labels)


def coco_question(categories: np.ndarray, size: tuple[int, int]) -> Question:
    """Prompts of contiguous COCO classes [P]."""
    ids = torch.from_numpy(categories)
    return Question.of(size, len(ids), class_ids=ids, is_thing=ids < NUM_THINGS, num_classes=NUM_CLASSES)


def check_postprocess(golden_file: str | Path) -> list[Check]:
    """Run the four tasks on the ellipses of a `postprocess_*.npz` file and compare.

    Args:
        golden_file: the .npz.
    """
    golden = np.load(golden_file)
    queries = ellipse_queries(int(golden["seed"]), len(golden["categories"]))
    question = coco_question(golden["categories"], (int(golden["height"]), int(golden["width"])))
    options = released_options(golden)
    results = infer([queries], ("semantic", "panoptic", "referring"), question, options)
    checks = [close("scores", queries.scores, golden["scores"])]
    checks += _check_instance(instances_of_all(queries, question, options), golden)
    checks += _check_panoptic(results["panoptic"], golden)

    _, scores = semantic_scores(queries, question, options)
    checks.append(same_map("semantic_argmax", results["semantic"].map, golden["semantic_argmax"]))
    checks.append(close("semantic_prompted", scores, golden["semantic_prompted"]))

    best = results["referring"]
    checks.append(same_map("refer_masks", best.masks, _unpacked(golden["refer_masks"], best.masks)))
    checks.append(close("refer_scores", best.scores, golden["refer_scores"]))
    return checks


def _unpacked(bits: np.ndarray, like: Tensor) -> np.ndarray:
    shape = tuple(like.shape)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)


def instances_of_all(queries: Queries, question: Question, options: InferenceOptions) -> InstanceResult:
    """Instances of stuff too, as the released model's instance segmentation finds what it is asked for."""
    everything = question._replace(is_thing=torch.ones_like(question.is_thing))
    return infer([queries], ("instance",), everything, options)["instance"]


def _check_instance(found: InstanceResult, golden: np.lib.npyio.NpzFile) -> list[Check]:
    order = align_ties(found.labels.numpy(), golden["instance_classes"], golden["instance_scores"])
    ties = int((order != np.arange(len(order))).sum())
    checks = [
        close("instance_scores", found.scores, golden["instance_scores"]),
        equal("instance_classes", found.labels[order], golden["instance_classes"], ties),
        close("instance_boxes", found.boxes[order], golden["instance_boxes"]),
    ]
    if checks[0].ok:
        masks = _unpacked(golden["instance_masks"], found.masks)
        checks.append(same_map("instance_masks", found.masks[order], masks))
    return checks


def _check_panoptic(result: PanopticResult, golden: np.lib.npyio.NpzFile) -> list[Check]:
    ids = np.array([s.id for s in result.segments])
    return [
        same_map("panoptic_map", result.map, golden["panoptic_map"]),
        equal("panoptic_ids", ids, golden["panoptic_ids"]),
        equal("panoptic_categories", np.array([s.label for s in result.segments]), golden["panoptic_categories"]),
        equal("panoptic_isthing", np.array([s.is_thing for s in result.segments]), golden["panoptic_isthing"]),
    ]
