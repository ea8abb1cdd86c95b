"""Parity of post-processing alone, on masks made by formula (rotated ellipses)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openworldsam.config import load_config
from openworldsam.inference import (
    InferenceOptions,
    MaskRows,
    instance_inference,
    panoptic_inference,
    referring_inference,
    semantic_inference,
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


def ellipse_rows(seed: int, categories: np.ndarray, num_queries: int = 20) -> MaskRows:
    """Query rows whose masks are rotated ellipses, some of them near duplicates, some turned by 90 degrees."""
    num_rows = len(categories) * num_queries
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
    labels = np.repeat(categories, num_queries)
    return MaskRows(torch.from_numpy(logits), torch.from_numpy(scores), torch.from_numpy(labels))


def check_postprocess(golden_file: str | Path) -> list[Check]:
    """Run the four tasks on the ellipses of a `postprocess_*.npz` file and compare.

    Args:
        golden_file: the .npz.
    """
    golden = np.load(golden_file)
    rows = ellipse_rows(int(golden["seed"]), golden["categories"])
    size = (int(golden["height"]), int(golden["width"]))
    options = released_options(golden)
    checks = [close("scores", rows.scores, golden["scores"])]
    checks += _check_instance(rows, size, options, golden)
    checks += _check_panoptic(rows, size, options, golden)

    _, scores = semantic_scores(rows, size, NUM_CLASSES, options)
    label_map = semantic_inference(rows, size, NUM_CLASSES, options)
    checks.append(same_map("semantic_argmax", label_map, golden["semantic_argmax"]))
    checks.append(close("semantic_prompted", scores, golden["semantic_prompted"]))

    best = referring_inference(rows, size)
    checks.append(same_map("refer_masks", best.masks, _unpacked(golden["refer_masks"], best.masks)))
    checks.append(close("refer_scores", best.scores, golden["refer_scores"]))
    return checks


def _unpacked(bits: np.ndarray, like: Tensor) -> np.ndarray:
    shape = tuple(like.shape)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)


def _check_instance(
    rows: MaskRows, size: tuple[int, int], options: InferenceOptions, golden: np.lib.npyio.NpzFile
) -> list[Check]:
    found = instance_inference(rows, size, options)
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


def _check_panoptic(
    rows: MaskRows, size: tuple[int, int], options: InferenceOptions, golden: np.lib.npyio.NpzFile
) -> list[Check]:
    is_thing = {int(c): int(c) < NUM_THINGS for c in golden["categories"]}
    result = panoptic_inference(rows, size, is_thing, options)
    ids = np.array([s.id for s in result.segments])
    return [
        same_map("panoptic_map", result.map, golden["panoptic_map"]),
        equal("panoptic_ids", ids, golden["panoptic_ids"]),
        equal("panoptic_categories", np.array([s.label for s in result.segments]), golden["panoptic_categories"]),
        equal("panoptic_isthing", np.array([s.is_thing for s in result.segments]), golden["panoptic_isthing"]),
    ]
