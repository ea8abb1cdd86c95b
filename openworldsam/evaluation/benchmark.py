"""Evaluation of a model on registered datasets, on one process or many.

Panoptic segments are the ground truth of all three tasks. Instances are the things among them, so AP on COCO panoptic
differs slightly from AP on COCO's instance annotations, which may overlap. In the semantic ground truth a crowd has its
class, as in COCO's.

Shapes: H, W size of the image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import nn

from openworldsam.data.datasets.benchmarks import PROMPT_CAPS, SOFTMAX_CLASSES
from openworldsam.data.datasets.catalog import load_records
from openworldsam.data.records import Record
from openworldsam.data.records.instances import LVIS_KEYS
from openworldsam.evaluation.answer import NO_CLASS, Answer, predicted_answer, true_answer
from openworldsam.evaluation.examples import PROTOCOLS, EvaluationDataset, Example, remark
from openworldsam.evaluation.metrics.absent import AbsentPrompts
from openworldsam.evaluation.metrics.accumulator import Scores, merged
from openworldsam.evaluation.metrics.cityscapes import CityscapesAP
from openworldsam.evaluation.metrics.concept import ConceptScores
from openworldsam.evaluation.metrics.instance import MasksAndBoxes
from openworldsam.evaluation.metrics.panoptic import PanopticQuality
from openworldsam.evaluation.metrics.referring import GeneralizedReferringScores, ReferringScores
from openworldsam.evaluation.metrics.semantic import SemanticScores
from openworldsam.evaluation.prompt_text import PromptText
from openworldsam.evaluation.saved import SavedPredictions, Saving, claim_folder
from openworldsam.evaluation.summary import Results
from openworldsam.inference import prompt_chunk
from openworldsam.utils.files import named
from openworldsam.utils.progress import Progress
from openworldsam.utils.workers import image_loader

logger = logging.getLogger(__name__)


class Benchmark:
    """Scores of one dataset: an accumulator per task, and the images that could not be scored.

    It is an accumulator too, see `metrics.accumulator`.

    Args:
        tasks: of `summary.HEADLINES`; "absent" is the false-positive rate, for which an absent thing is found if it has
            an instance, absent stuff if it has a panoptic segment; "concept" scores present and absent things.
        class_names, is_thing: by contiguous class id.
        protocol: of TEST.PROTOCOL; always "oracle" for referring data.

    Attributes:
        images: number of images scored.
        dataset_images: number of images of the dataset; None if the caller does not say.
        skipped: the reason by file name of each image that could not be read.
        remarks: warnings by file name, see `examples.remark`.
    """

    def __init__(
        self, tasks: Sequence[str], class_names: Sequence[str], is_thing: Sequence[bool], protocol: str = "oracle"
    ) -> None:
        things = [c for c, thing in enumerate(is_thing) if thing]
        makers = {
            "panoptic": lambda: PanopticQuality(dict(enumerate(is_thing))),
            "instance": lambda: MasksAndBoxes(things),
            "cityscapes": lambda: CityscapesAP(things),
            "semantic": lambda: SemanticScores(len(class_names), ignore=NO_CLASS),
            "referring": ReferringScores,
            "generalized_referring": GeneralizedReferringScores,
            "absent": AbsentPrompts,
            "concept": ConceptScores,
        }
        self.accumulators: dict[str, Any] = {task: makers[task]() for task in tasks}
        self.class_names, self.is_thing, self.protocol = class_names, is_thing, protocol
        self.images = 0
        self.dataset_images: int | None = None
        self.skipped: dict[str, str] = {}
        self.remarks: dict[str, str] = {}

    @property
    def model_tasks(self) -> tuple[str, ...]:
        """Tasks that the model must answer."""
        needed = {
            "generalized_referring": ("referring",),
            "absent": ("instance", "panoptic"),
            "concept": ("instance",),
            "cityscapes": ("instance",),
        }
        return tuple(dict.fromkeys(t for task in self.accumulators for t in needed.get(task, (task,))))

    def update(self, example: Example, predicted: Answer) -> None:
        """Add an image.

        Args:
            example: with its ground truth.
            predicted: the model's answer to `model_tasks`.

        Raises:
            ValueError: the image cannot be scored; names it.
        """
        inputs, truth = example
        true = self.truth(example)
        with named(inputs["file_name"]):
            for task, accumulator in self.accumulators.items():
                if task == "panoptic":
                    assert predicted.panoptic and true.panoptic
                    segments = [(s["id"], s["category_id"]) for s in predicted.panoptic[1]]
                    true_segments = [(s["id"], s["category_id"], s["iscrowd"]) for s in true.panoptic[1]]
                    areas = {s["id"]: s["area"] for s in true.panoptic[1]}
                    accumulator.update(predicted.panoptic[0], segments, true.panoptic[0], true_segments, areas)
                elif task == "instance":
                    accumulator.update(inputs["image_id"], truth.segment_map.shape, predicted.instance, true.instance)
                elif task == "cityscapes":
                    regions = [(s["id"], s["category_id"], s["iscrowd"]) for s in truth.segments]
                    accumulator.update(predicted.instance, truth.segment_map, regions, truth.void)
                elif task == "semantic":
                    accumulator.update(predicted.semantic, true.semantic)
                elif task in ("referring", "generalized_referring"):
                    assert predicted.referring is not None
                    for mask, true_mask in zip(predicted.referring, truth.referents, strict=True):
                        accumulator.update(mask, true_mask)
                elif task == "concept":
                    assert predicted.instance is not None and true.instance is not None
                    absent = {c for c in truth.absent if self.is_thing[c]}
                    phrases = absent | {instance["category_id"] for instance in true.instance}
                    phrases -= set(truth.not_exhaustive)
                    accumulator.update(truth.segment_map.shape, phrases, predicted.instance, true.instance)
                else:
                    assert predicted.instance is not None and predicted.panoptic
                    found = {instance["category_id"] for instance in predicted.instance}
                    found |= {s["category_id"] for s in predicted.panoptic[1] if not s["isthing"]}
                    accumulator.update(truth.absent, found)
        self.images += 1
        if said := remark(example):
            self.remarks[inputs["file_name"]] = said

    def truth(self, example: Example) -> Answer:
        """The ground truth of `model_tasks`."""
        return true_answer(example.truth, self.is_thing, self.model_tasks)

    def merge(self, other: Benchmark) -> None:
        """Add the counts of another process."""
        for task, accumulator in self.accumulators.items():
            accumulator.merge(other.accumulators[task])
        self.images += other.images
        self.skipped.update(other.skipped)
        self.remarks.update(other.remarks)

    def compute(self) -> dict[str, Scores]:
        """The scores of each task."""
        return {task: accumulator.compute() for task, accumulator in self.accumulators.items()}

    def content(self) -> dict[str, Any]:
        """The result of the benchmark, as JSON: metrics by task and name, with "per_class" by class name; and protocol,
        images, dataset_images, skipped and remarks."""
        tasks = {
            task: {**scores.overall, "per_class": {self.class_names[c]: m for c, m in scores.per_class.items()}}
            for task, scores in self.compute().items()
        }
        counts = {"images": self.images, "dataset_images": self.dataset_images}
        return {**tasks, "protocol": self.protocol, **counts, "skipped": self.skipped, "remarks": self.remarks}


def tasks_with_negatives(tasks: Sequence[str], protocol: str) -> list[str]:
    """Return the tasks of a dataset, and those that score the absent classes a protocol asks for."""
    absent = ["absent"] if protocol == "present+absent" else []
    return [*tasks, *absent, *(["concept"] if "instance" in tasks and protocol != "oracle" else [])]


def evaluate(cfg: CfgNode, model: nn.Module, saving: Saving | None = None) -> Results:
    """Score a model on every dataset of DATASETS.TEST; all processes call it, each takes its share of the images.

    Args:
        cfg: a config that `engine.checks.check_evaluation` has passed.
        model: an `OpenWorldSAM`; it stays in its mode, and no random generator is used.
        saving: where to save predictions; saved ones are loaded instead of predicted.

    Returns:
        `Benchmark.content` by dataset; empty on all processes but the first.

    Raises:
        FileNotFoundError, ValueError: a dataset is missing or damaged, or saved predictions are of another model.
    """
    results: Results = {}
    for name in cfg.DATASETS.TEST:
        whole = merged(run_benchmark(cfg, model, name, saving))
        if whole:
            results[name] = whole.content()
            logger.info("%s: %d images, %d skipped", name, whole.images, len(whole.skipped))
    return results


def evaluation_dataset(cfg: CfgNode, name: str, records: Sequence[Record]) -> EvaluationDataset:
    """Make the examples of some records of a registered dataset, by its own protocol or TEST.PROTOCOL."""
    metadata = MetadataCatalog.get(name)
    generalized = "generalized_referring" in metadata.tasks
    referring = generalized or "referring" in metadata.tasks
    return EvaluationDataset(
        records,
        class_names=metadata.vocabulary,
        is_thing=metadata.is_thing,
        protocol=PROTOCOLS[0] if referring else getattr(metadata, "protocol", "") or cfg.TEST.PROTOCOL,
        num_absent=cfg.TEST.NUM_ABSENT,
        cap=PROMPT_CAPS.get(name, 0) if cfg.TEST.PROMPT_CAPS else 0,
        softmax_classes=SOFTMAX_CLASSES.get(name, 0),
        text=PromptText.from_config(cfg),
        sentences=cfg.TEST.SENTENCES,
        generalized=generalized,
    )


def run_benchmark(cfg: CfgNode, model: nn.Module, name: str, saving: Saving | None = None) -> Benchmark:
    """Score this process's share of a dataset."""
    metadata, everything = MetadataCatalog.get(name), load_records(name)
    dataset = evaluation_dataset(cfg, name, everything[: cfg.TEST.MAX_IMAGES or None])
    classes = {"class_names": metadata.vocabulary, "is_thing": metadata.is_thing}
    tasks = tasks_with_negatives(metadata.tasks, dataset.protocol)
    benchmark = Benchmark(tasks, **classes, protocol=dataset.protocol)
    benchmark.dataset_images = len(everything)
    saved = None
    if saving:
        category_ids = getattr(metadata, "category_ids", None)  # a user's own registration may lack them
        saved = SavedPredictions(saving.folder / name, **classes, category_ids=category_ids)
        claim_folder(saved.folder, saving.identity)
    with inference_context(model), torch.no_grad():
        _score_images(cfg, model, dataset, benchmark, saved)
    if saved:
        comm.synchronize()
        if comm.is_main_process():
            saved.finish(record["image_id"] for record in dataset.records)
    return benchmark


def _score_images(
    cfg: CfgNode, model: nn.Module, dataset: EvaluationDataset, benchmark: Benchmark, saved: SavedPredictions | None
) -> None:
    """Predict and score this process's share of the images."""
    chunk = prompt_chunk(cfg, "referring" in benchmark.model_tasks)
    for examples in read_examples(cfg, dataset, benchmark.skipped):
        answers = [saved.load(e.inputs) if saved else None for e in examples]
        todo = [e for e, answer in zip(examples, answers, strict=True) if answer is None]
        predicted = iter(model([e.inputs for e in todo], tasks=benchmark.model_tasks, prompt_chunk=chunk))
        for example, done in zip(examples, answers, strict=True):
            answer = done or predicted_answer(next(predicted), example.inputs["image_id"])
            benchmark.update(example, answer)
            if saved:
                asked = {key: list(getattr(example.truth, key)) for key in LVIS_KEYS}
                saved.save(example.inputs, answer, benchmark.truth(example), asked=asked, loaded=done is not None)


def read_examples(cfg: CfgNode, dataset: EvaluationDataset, skipped: dict[str, str]) -> Iterator[list[Example]]:
    """Read this process's share of a dataset in batches; files that cannot be read go to `skipped` with the reason."""
    sampler = InferenceSampler(len(dataset))
    loader = image_loader(
        dataset,
        batch_size=cfg.TEST.IMS_PER_BATCH,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=torch.cuda.is_available(),
    )
    progress = Progress(len(sampler))
    for batch in loader:
        examples = [example for example in batch if isinstance(example, Example)]
        for unreadable in (example for example in batch if not isinstance(example, Example)):
            logger.warning("skipped %s: %s", *unreadable)
            skipped[unreadable.file_name] = unreadable.reason
        yield examples
        progress.update(len(batch), sum(len(example.inputs["prompts"]) for example in examples))
