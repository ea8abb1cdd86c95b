"""Parity of post-processing alone, on masks made by a formula (rotated ellipses)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from openworldsam.config import load_config
from openworldsam.inference import InferenceOptions, Queries, Question, infer, semantic_scores
from openworldsam.parity.checks import Check, Golden, align_ties, close, equal, read_golden, same_areas, same_map

NUM_CLASSES, NUM_THINGS = 133, 80
"""COCO panoptic; contiguous ids below 80 are things."""
SIDE = 256


def released_options(golden: Golden) -> InferenceOptions:
    """The inference options of preset `released` with the thresholds of a golden file."""
    cfg = load_config(Path(__file__).parents[2] / "configs/presets/released.yaml")
    cfg.MODEL.INFERENCE.SCORE_THRESHOLD = float(golden["iou_threshold"])
    cfg.MODEL.INFERENCE.NMS_THRESHOLD = float(golden["nms_threshold"])
    return InferenceOptions.from_config(cfg)


def ellipse_queries(seed: int, num_prompts: int, num_queries: int = 20) -> Queries:
    """Queries whose masks are rotated ellipses, some of them near duplicates, some turned by 90 degrees."""
    count = num_prompts * num_queries
    u = np.random.Generator(np.random.Philox(key=seed)).random((count, 6), dtype=np.float32)
    f32 = np.float32
    cx, cy, ra = f32(256) * u[:, 0], f32(256) * u[:, 1], f32(20) + f32(70) * u[:, 2]
    rb, theta = ra * (f32(0.15) + f32(0.5) * u[:, 4]), f32(np.pi) * u[:, 5]
    scores = f32(0.3) + f32(0.69) * u[:, 3]
    scores[10] = f32(0.7)
    ellipses = np.stack([cx, cy, ra, rb, theta])
    for q in range(count):
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
    """Ask for contiguous COCO classes [P]."""
    ids = torch.from_numpy(categories)
    return Question.of(size, len(ids), class_ids=ids, is_thing=ids < NUM_THINGS, num_classes=NUM_CLASSES)


def check_postprocess(golden_file: str | Path) -> list[Check]:
    """Run the four tasks on the ellipses of a `postprocess_*.npz` file and compare.

    Raises:
        FileNotFoundError, ValueError: the golden file is missing or damaged.
    """
    golden = read_golden(golden_file)
    queries = ellipse_queries(int(golden["seed"]), len(golden["categories"]))
    question = coco_question(golden["categories"], (int(golden["height"]), int(golden["width"])))
    options = released_options(golden)
    _, scores = semantic_scores(queries, question, options)
    results = infer([queries], ("semantic", "referring"), question, options)
    best = results["referring"]
    return [
        close("scores", queries.scores, golden["scores"]),
        *check_instances("instance", queries, question, options, golden),
        *check_panoptic(queries, question, options, golden),
        same_map("semantic_argmax", results["semantic"].map, golden["semantic_argmax"]),
        close("semantic_prompted", scores, golden["semantic_prompted"]),
        same_map("refer_masks", best.masks, _unpack(golden["refer_masks"], len(best.masks), question.size)),
        close("refer_scores", best.scores, golden["refer_scores"]),
    ]


def check_instances(
    name: str, queries: Queries, question: Question, options: InferenceOptions, golden: Golden
) -> list[Check]:
    """Compare instance segmentation with the arrays NAME_*: scores, classes and, where recorded, boxes, areas, masks.

    The released model's instances may be stuff. The order of nearly equal scores does not matter.
    """
    everything = question._replace(is_thing=torch.ones_like(question.is_thing))
    found = infer([queries], ("instance",), everything, options)["instance"]
    size = question.size
    scores, classes = golden[f"{name}_scores"], golden[f"{name}_classes"]
    order = align_ties(found.labels.numpy(), classes, scores)
    ties = int((order != np.arange(len(order))).sum())
    masks = found.masks[order]
    checks = [
        close(f"{name}_scores", found.scores, scores),
        equal(f"{name}_classes", found.labels[order], classes, ties),
    ]
    if f"{name}_areas" in golden:
        areas = masks.sum(dim=(1, 2))
        checks.append(same_areas(f"{name}_areas", areas, golden[f"{name}_areas"], size[0] * size[1]))
    if f"{name}_boxes" in golden:
        checks.append(close(f"{name}_boxes", found.boxes[order], golden[f"{name}_boxes"]))
    if f"{name}_masks" in golden:
        checks.append(same_map(f"{name}_masks", masks, _unpack(golden[f"{name}_masks"], len(scores), size)))
    return checks


def check_panoptic(queries: Queries, question: Question, options: InferenceOptions, golden: Golden) -> list[Check]:
    """Compare panoptic segmentation: the segments' classes, and map and ids or, where not recorded, areas."""
    found = infer([queries], ("panoptic",), question, options)["panoptic"]
    size = question.size
    if "panoptic_map" in golden:
        ids = np.array([s.id for s in found.segments])
        where = [
            same_map("panoptic_map", found.map, golden["panoptic_map"]),
            equal("panoptic_ids", ids, golden["panoptic_ids"]),
        ]
    else:
        areas = torch.bincount(found.map.flatten(), minlength=len(found.segments) + 1)
        where = [same_areas("panoptic_areas", areas, golden["panoptic_areas"], size[0] * size[1])]
    return [
        *where,
        equal("panoptic_categories", np.array([s.label for s in found.segments]), golden["panoptic_categories"]),
        equal("panoptic_isthing", np.array([s.is_thing for s in found.segments]), golden["panoptic_isthing"]),
    ]


def _unpack(bits: np.ndarray, num_masks: int, size: tuple[int, int]) -> np.ndarray:
    """Masks from bits, uint8 [N, H, W]."""
    shape = (num_masks, *size)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)
