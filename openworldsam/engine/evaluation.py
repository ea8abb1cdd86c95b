"""Panoptic quality of a model on registered datasets, asked for the classes that each image has (oracle prompts)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import COCOPanopticEvaluator, inference_on_dataset
from torch.utils.data import DataLoader, Dataset

from openworldsam.data.mapper import DatasetMapper
from openworldsam.modeling import OpenWorldSAM

logger = logging.getLogger(__name__)


class EvaluationDataset(Dataset[dict[str, Any]]):
    """Every record of a dataset once, with all its classes; an image without ground truth has no prompts."""

    def __init__(self, name: str, mapper: DatasetMapper) -> None:
        self.records = DatasetCatalog.get(name)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mapped = self.mapper(self.records[index], np.random.default_rng(index), need_ground_truth=False)
        assert mapped is not None  # only where ground truth is needed
        return mapped


def evaluate(cfg: CfgNode, model: OpenWorldSAM) -> dict[str, dict[str, float]]:
    """PQ, SQ and RQ on every panoptic dataset of DATASETS.TEST.

    Args:
        cfg: its config.
        model: in any mode, which it keeps.

    Returns:
        for each dataset, the metrics by name, in percent; empty on all processes but the first.
    """
    results: dict[str, dict[str, float]] = {}
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        mapper = DatasetMapper(class_names=metadata.vocabulary, is_thing=metadata.is_thing, max_prompts=0, flip=False)
        dataset = EvaluationDataset(name, mapper)
        loader = DataLoader(
            dataset,
            batch_size=1,
            sampler=InferenceSampler(len(dataset)),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
            generator=torch.Generator(),  # starting the loader must not touch the generator of a training
        )
        evaluator = COCOPanopticEvaluator(name, str(Path(cfg.OUTPUT_DIR) / "evaluation" / name))
        found = inference_on_dataset(model, loader, evaluator)
        if found:
            results[name] = dict(found["panoptic_seg"])
            logger.info("%s: %s", name, ", ".join(f"{key} {value:.2f}" for key, value in results[name].items()))
    return results
