"""Calibration of the scores of queries on a held-out split, and choice of the threshold (docs/score.md).

Shapes: R queries and N ground-truth masks of a prompt, H, W size of the image, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from scipy.stats import rankdata
from torch import Tensor

from openworldsam.data.datasets.catalog import load_records
from openworldsam.data.records.coco_json import is_crowd
from openworldsam.data.records.rle import decode_mask
from openworldsam.evaluation.answer import true_instances
from openworldsam.evaluation.benchmark import evaluation_dataset, read_examples
from openworldsam.evaluation.examples import Example
from openworldsam.evaluation.metrics.accumulator import merged
from openworldsam.inference import SCORES, Queries, prompt_chunk
from openworldsam.inference.nms import greedy_nms, mask_iou
from openworldsam.modeling import OpenWorldSAM

BINS = 15
"""Bins of equal width of the reliability diagram and the calibration error (Guo et al., 2017)."""
RIGHT = 0.5
"""A mask is right if its IoU with a ground-truth mask of its prompt exceeds this."""
THRESHOLDS = np.arange(1, 100) / 100


class Calibration:
    """Scores of all queries beside the IoU of their masks; an accumulator, see `metrics.accumulator`.

    A query's IoU is the largest with a ground-truth mask of its prompt, 0 for an absent prompt.

    ece: expected calibration error, the mean over all queries of |mean score - mean IoU| of their bin. The reference is
        the IoU, which both scores estimate, and not the share of right masks.
    auc: probability that a right query scores higher than a wrong one.
    threshold: the one of largest F1 in steps of 0.01, the lowest of equals. Duplicates of a prompt are removed as for
        instances; of the masks left, each of at least the threshold is found, and the best of those that are right for
        one ground-truth mask is a hit. F1 is over all prompts, things and stuff: the RQ factor of panoptic quality,
        without its mean over classes.

    Args:
        rules: of `inference.SCORES`.
        nms_threshold: masks of a prompt are duplicates if their IoU exceeds this.

    Attributes:
        images: number of images with a readable ground truth.
        skipped: the reason by file name of each image that could not be read.
    """

    def __init__(self, rules: Iterable[str], nms_threshold: float) -> None:
        self.rules, self.nms_threshold = tuple(rules), nms_threshold
        self.queries: list[np.ndarray] = []
        """[R, rules + 1]: score by each rule, and IoU."""
        self.found, self.hits = np.zeros((2, len(self.rules), len(THRESHOLDS)), dtype=np.int64)
        """[rules, T]"""
        self.true_masks = self.images = 0
        self.skipped: dict[str, str] = {}

    def update(self, masks: Tensor, scores: Mapping[str, Tensor], truth: Tensor) -> None:
        """Add the queries of a prompt.

        Args:
            masks: bool [R, H, W].
            scores: [R] on the CPU, by rule.
            truth: bool [N, H, W] on the device of the masks.
        """
        iou = mask_iou(torch.cat([masks, truth]))
        among, to_truth = iou[: len(masks), : len(masks)], iou[: len(masks), len(masks) :].numpy()
        columns = [scores[rule].double().numpy() for rule in self.rules]
        self.queries.append(np.stack([*columns, to_truth.max(axis=1, initial=0)], axis=1))
        self.true_masks += len(truth)
        for place, rule in enumerate(self.rules):
            free = np.where(to_truth > RIGHT, to_truth, 0)
            for query in greedy_nms(among, scores[rule], self.nms_threshold).tolist():
                reached = columns[place][query] >= THRESHOLDS
                self.found[place] += reached
                if free[query].any():
                    free[:, free[query].argmax()] = 0
                    self.hits[place] += reached

    def merge(self, other: Calibration) -> None:
        """Add the queries of another process."""
        self.queries += other.queries
        self.found += other.found
        self.hits += other.hits
        self.true_masks += other.true_masks
        self.images += other.images
        self.skipped.update(other.skipped)

    def content(self) -> dict[str, Any]:
        """The numbers as JSON: counts, and by rule ece, auc, threshold, f1, and the bins with queries, right ones, and
        means of score and IoU. A number without anything to measure is None.

        Raises:
            ValueError: there is no query.
        """
        rows = np.concatenate(self.queries) if self.queries else np.zeros((0, 1))
        if not len(rows):
            raise ValueError(
                f"nothing to calibrate with: no query on {self.images} images, {len(self.skipped)} skipped"
            )
        rows = rows[np.lexsort(rows.T)]  # sums do not depend on the order of the images
        right = rows[:, -1] > RIGHT
        return {
            **{"images": self.images, "skipped": self.skipped, "true_masks": self.true_masks},
            **{"queries": len(rows), "right": int(right.sum())},
            "scores": {
                rule: _reliability(rows[:, place], rows[:, -1], right) | self._best_threshold(place)
                for place, rule in enumerate(self.rules)
            },
        }

    def _best_threshold(self, place: int) -> dict[str, float | None]:
        f1 = 2 * self.hits[place] / np.maximum(1, self.found[place] + self.true_masks)
        best = int(f1.argmax())
        return {"threshold": float(THRESHOLDS[best]) if f1[best] else None, "f1": float(f1[best])}


def _reliability(scores: np.ndarray, ious: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Return ece, auc and bins of R queries: scores, IoUs and whether they are right, each [R]."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts, hits = np.bincount(bins, minlength=BINS), np.bincount(bins[right], minlength=BINS)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (scores, ious)]
    columns = zip(*(column.tolist() for column in (counts, hits, *sums)), strict=True)
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    above = rankdata(scores)[right].sum() - num_right * (num_right + 1) / 2
    return {
        "ece": float(np.abs(sums[0] - sums[1]).sum() / len(scores)),
        "auc": float(above / (num_right * num_wrong)) if num_right and num_wrong else None,
        "bins": [
            {"queries": n, "right": hit, "score": score / n if n else None, "iou": iou / n if n else None}
            for n, hit, score, iou in columns
        ],
    }


def calibrate(cfg: CfgNode, model: OpenWorldSAM) -> Calibration | None:
    """Compare the scores of a model with the quality of its masks on the datasets of DATASETS.TEST.

    All processes call it, each takes its share of the images; only the first gets the result.

    Args:
        cfg: a config that `engine.checks.check_evaluation` has passed.
        model: with its weights; it stays in its mode.

    Raises:
        FileNotFoundError, ValueError: a dataset is missing or damaged.
    """
    calibration = Calibration(SCORES if model.score_head else ("iou",), model.inference.nms_threshold)
    every = replace(
        model.inference, score="iou", score_threshold=0.0, nms_threshold=1.0, instance_nms="mask", top_k=0
    )  # each mask with a pixel is an instance
    with inference_context(model), torch.no_grad():
        for name in cfg.DATASETS.TEST:
            dataset = evaluation_dataset(cfg, name, load_records(name)[: cfg.TEST.MAX_IMAGES or None])
            chunk = prompt_chunk(cfg, referring=not dataset.class_names)
            for examples in read_examples(cfg, dataset, calibration.skipped):
                keys = ("image", "prompts", "height", "width")
                inputs = [{key: example.inputs[key] for key in keys} for example in examples]
                answers = model.answer(inputs, ("instance",), prompt_chunk=chunk, options=every)
                for example, answer in zip(examples, answers, strict=True):
                    _add(calibration, example, answer["instance"])
    return merged(calibration)


def _add(calibration: Calibration, example: Example, found: Any) -> None:
    """Add an image; `found` is the `InstanceResult` with all of its queries."""
    queries = Queries(found.masks, found.evidence[:, 0], found.labels, found.evidence[:, 1])
    scores = {rule: queries.by_rule(rule).scores for rule in calibration.rules}
    for prompt, truth in enumerate(true_masks(example)):
        if truth is not None:
            own = (found.labels == prompt).nonzero()[:, 0]
            masks = queries.select(own).logits
            calibration.update(masks, {r: s[own] for r, s in scores.items()}, torch.from_numpy(truth).to(masks.device))
    calibration.images += 1


def true_masks(example: Example) -> list[np.ndarray | None]:
    """Ground-truth masks of each prompt, bool [N, H, W]; None if some objects may have no mask of their own: there is a
    crowd, or the class is in `Truth.not_exhaustive`."""
    inputs, truth = example
    if "class_ids" not in inputs:
        return [mask[None][: int(mask.any())] for mask in truth.referents]
    size = (inputs["height"], inputs["width"])
    instances = true_instances(truth, [True] * inputs["num_classes"])
    unclear = {*truth.not_exhaustive, *(each["category_id"] for each in instances if is_crowd(each))}
    masks: dict[int, list[np.ndarray]] = {c: [] for c in inputs["class_ids"]}
    for each in instances:
        if each["category_id"] in masks.keys() - unclear:
            masks[each["category_id"]].append(decode_mask(each["segmentation"], size))
    return [None if c in unclear else np.stack(m) if m else np.zeros((0, *size), bool) for c, m in masks.items()]
