"""A model on registered datasets: what it predicts against the ground truth, on one process or many.

Ground truth stays in memory: panoptic segments are the truth of all three tasks. Instances are their things, so AP on
COCO panoptic differs a little from that on COCO's own instances, which may overlap. In semantic truth a crowd has its
class, as in COCO's own.

Shapes: H, W size of the image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_context
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools import mask as mask_util
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from openworldsam.data.datasets import check_registered, register_datasets
from openworldsam.evaluation.absent import AbsentPrompts
from openworldsam.evaluation.accumulator import Scores, merged, named
from openworldsam.evaluation.examples import PROTOCOLS, SENTENCES, EvaluationDataset, Example, Truth
from openworldsam.evaluation.instance import InstanceAP
from openworldsam.evaluation.panoptic import PanopticQuality
from openworldsam.evaluation.referring import ReferringScores
from openworldsam.evaluation.semantic import SemanticScores
from openworldsam.progress import Progress

logger = logging.getLogger(__name__)

NO_CLASS = -1
"""Label of void in semantic ground truth."""

HEADLINES = {
    "panoptic": ("PQ", "SQ", "RQ"),
    "instance": ("AP", "AP50"),
    "semantic": ("mIoU",),
    "referring": ("cIoU", "mIoU"),
    "absent": ("false_positive_rate",),
}
"""Every task, with the metrics that logs and tables show."""

Results = dict[str, dict[str, Any]]
"""For each benchmark what `Benchmark.content` returns."""


class Benchmark:
    """The accumulators of one dataset and what could not be scored; itself one, for `merged`.

    Args:
        tasks: of `HEADLINES`, on which it is scored; "absent" is the false-positive rate: an absent thing counts as
            found if an instance is, absent stuff if a panoptic segment is.
        class_names, is_thing: of the contiguous class ids.
        protocol: what images are asked; "oracle" says little of referring data.
    """

    def __init__(
        self, tasks: Sequence[str], class_names: Sequence[str], is_thing: Sequence[bool], protocol: str = "oracle"
    ) -> None:
        things = [c for c, thing in enumerate(is_thing) if thing]
        makers = {
            "panoptic": lambda: PanopticQuality(dict(enumerate(is_thing))),
            "instance": lambda: InstanceAP(things),
            "semantic": lambda: SemanticScores(len(class_names), ignore=NO_CLASS),
            "referring": ReferringScores,
            "absent": AbsentPrompts,
        }
        self.accumulators: dict[str, Any] = {task: makers[task]() for task in tasks}
        self.class_names, self.is_thing, self.protocol = class_names, is_thing, protocol
        self.images = 0
        self.skipped: dict[str, str] = {}
        """Reasons by file name."""

    @property
    def model_tasks(self) -> tuple[str, ...]:
        """What the model must answer."""
        needed = {"absent": ("instance", "panoptic")}
        return tuple(dict.fromkeys(t for task in self.accumulators for t in needed.get(task, (task,))))

    def update(self, example: Example, predicted: Mapping[str, Any]) -> None:
        """Add an image.

        Args:
            example: with its ground truth.
            predicted: a result of `OpenWorldSAM.forward` for `model_tasks`.

        Raises:
            ValueError: it cannot be scored; names the image.
        """
        inputs, truth = example
        with named(inputs["file_name"]):
            for task, accumulator in self.accumulators.items():
                if task == "panoptic":
                    segments = [(s["id"], s["category_id"]) for s in predicted["panoptic_seg"][1]]
                    true_segments = [(s["id"], s["category_id"], int(s["iscrowd"])) for s in truth.segments]
                    accumulator.update(
                        predicted["panoptic_seg"][0].cpu().numpy(), segments, truth.segment_map, true_segments
                    )
                elif task == "instance":
                    found = instances_to_coco_json(predicted["instances"].to("cpu"), inputs["image_id"])
                    true = self._true_instances(truth)
                    accumulator.update(inputs["image_id"], truth.segment_map.shape, found, true)
                elif task == "semantic":
                    accumulator.update(predicted["semantic"].cpu().numpy(), semantic_map(truth))
                elif task == "referring":
                    masks = predicted["referring"][0].cpu().numpy()
                    for mask, true_mask in zip(masks, truth.referents, strict=True):
                        accumulator.update(mask, true_mask)
                else:
                    accumulator.update(truth.absent, self._found_classes(predicted))
        self.images += 1

    def _true_instances(self, truth: Truth) -> list[dict[str, Any]]:
        """The things among the segments as COCO annotations."""
        annotations = []
        for segment in truth.segments:
            mask = truth.segment_map == segment["id"]
            if self.is_thing[segment["category_id"]] and mask.any():
                code = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
                area = int(mask.sum())
                own = {key: segment[key] for key in ("category_id", "iscrowd")}
                annotations.append({**own, "segmentation": code, "area": area})
        return annotations

    def _found_classes(self, predicted: Mapping[str, Any]) -> set[int]:
        """Things with an instance, stuff with a panoptic segment."""
        things = set(predicted["instances"].pred_classes.tolist())
        return things | {s["category_id"] for s in predicted["panoptic_seg"][1] if not s["isthing"]}

    def merge(self, other: Benchmark) -> None:
        """Add the counts of another process."""
        for task, accumulator in self.accumulators.items():
            accumulator.merge(other.accumulators[task])
        self.images += other.images
        self.skipped.update(other.skipped)

    def compute(self) -> dict[str, Scores]:
        """The scores of each task."""
        return {task: accumulator.compute() for task, accumulator in self.accumulators.items()}

    def content(self) -> dict[str, Any]:
        """What goes into a result: by task the metrics by name and per_class by class name; protocol, number of images
        scored, and the reason for each that was skipped."""
        tasks = {
            task: {**scores.overall, "per_class": {self.class_names[c]: m for c, m in scores.per_class.items()}}
            for task, scores in self.compute().items()
        }
        return {**tasks, "protocol": self.protocol, "images": self.images, "skipped": self.skipped}


def semantic_map(truth: Truth) -> np.ndarray:
    """The class of every pixel, int64 [H, W], `NO_CLASS` where void."""
    classes = {segment["id"]: segment["category_id"] for segment in truth.segments}
    ids, inverse = np.unique(truth.segment_map, return_inverse=True)
    table = np.array([classes.get(i, NO_CLASS) for i in ids.tolist()], dtype=np.int64)
    return table[inverse].reshape(truth.segment_map.shape)


def check_benchmarks(cfg: CfgNode) -> None:
    """Raise ValueError if DATASETS.TEST cannot be evaluated as TEST says."""
    if not cfg.DATASETS.TEST:
        raise ValueError("nothing to evaluate: DATASETS.TEST is empty (tools/eval_net.py also takes --benchmarks)")
    register_datasets(cfg)
    check_registered(cfg.DATASETS.TEST)
    for name in cfg.DATASETS.TEST:
        if not getattr(MetadataCatalog.get(name), "tasks", ()):
            raise ValueError(f"{name} cannot be evaluated: its metadata name no tasks to score it on")
    for key, choices in (("PROTOCOL", PROTOCOLS), ("SENTENCES", SENTENCES)):
        if cfg.TEST[key] not in choices:
            raise ValueError(f"TEST.{key} is one of {choices}, got {cfg.TEST[key]!r}")
    if cfg.TEST.IMS_PER_BATCH < 1 or cfg.TEST.MAX_IMAGES < 0 or cfg.DATALOADER.NUM_WORKERS < 0:
        raise ValueError("TEST.IMS_PER_BATCH is 1 or more, TEST.MAX_IMAGES and DATALOADER.NUM_WORKERS 0 or more")


def evaluate(cfg: CfgNode, model: nn.Module) -> Results:
    """Score a model on every dataset of DATASETS.TEST; all processes call it, each takes its share of the images.

    Args:
        cfg: its config.
        model: an `OpenWorldSAM` in any mode, which it keeps; no random generator is touched.

    Returns:
        `Benchmark.content` by dataset; empty on all processes but the first.

    Raises:
        FileNotFoundError, ValueError: a dataset is unknown, not there or damaged, or a key of TEST is wrong.
    """
    check_benchmarks(cfg)
    results: Results = {}
    for name in cfg.DATASETS.TEST:
        whole = merged(run_benchmark(cfg, model, name))
        if whole:
            results[name] = whole.content()
            logger.info("%s: %d images, %d skipped", name, whole.images, len(whole.skipped))
    return results


def run_benchmark(cfg: CfgNode, model: nn.Module, name: str) -> Benchmark:
    """Score this process's share of a dataset."""
    metadata = MetadataCatalog.get(name)
    protocol = getattr(metadata, "protocol", "") or cfg.TEST.PROTOCOL
    classes = {"class_names": metadata.vocabulary, "is_thing": metadata.is_thing}
    records = DatasetCatalog.get(name)[: cfg.TEST.MAX_IMAGES or None]
    dataset = EvaluationDataset(records, **classes, protocol=protocol, sentences=cfg.TEST.SENTENCES)
    referring = "referring" in metadata.tasks
    tasks = (*metadata.tasks, *(("absent",) if protocol == "absent" and not referring else ()))
    benchmark = Benchmark(tasks, **classes, protocol=protocol)
    sampler = InferenceSampler(len(dataset))
    loader = DataLoader(
        dataset,
        batch_size=cfg.TEST.IMS_PER_BATCH,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        generator=torch.Generator(),  # starting the loader must not touch the generator of a training
    )
    progress = Progress(len(sampler))
    with inference_context(model), torch.no_grad():
        for batch in loader:
            examples = [example for example in batch if isinstance(example, Example)]
            for unreadable in (example for example in batch if not isinstance(example, Example)):
                logger.warning("skipped %s: %s", *unreadable)
                benchmark.skipped[unreadable.file_name] = unreadable.reason
            predicted = model([e.inputs for e in examples], tasks=benchmark.model_tasks) if examples else []
            for example, result in zip(examples, predicted, strict=True):
                benchmark.update(example, result)
            progress.update(len(batch), sum(len(example.inputs["prompts"]) for example in examples))
    return benchmark


def scalars(results: Results) -> dict[str, dict[str, float]]:
    """The metrics that are available by dataset and name, for Detectron2's EvalHook, which logs shapes_val/PQ."""
    return {
        name: {
            metric: value
            for task in HEADLINES
            for metric, value in content.get(task, {}).items()
            if metric != "per_class" and value is not None
        }
        for name, content in results.items()
    }


def table(results: Results) -> str:
    """The headline metrics, one a line, for people."""
    rows = [
        (name, content["protocol"], content["images"], f"{task} {metric}", content[task][metric])
        for name, content in results.items()
        for task, metrics in HEADLINES.items()
        if task in content
        for metric in metrics
    ]
    return tabulate(rows, ("benchmark", "protocol", "images", "metric", "value"), floatfmt=".2f", missingval="n/a")
