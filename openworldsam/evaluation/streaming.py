"""Asking an image about a large vocabulary: a chunk of the prompts at a time, so that memory does not grow with it.

All query rows of 847 classes would take 4.4 GB as logits alone. Prompts are encoded as ever; then each chunk is decoded
and reduced to what can still matter. The result is that of the forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import nn

from openworldsam.inference import (
    InferenceOptions,
    MaskRows,
    SemanticMerge,
    instance_inference,
    join_rows,
    panoptic_inference,
    referring_inference,
    useful_rows,
)


def chunk_of(cfg: CfgNode, referring: bool = False) -> int:
    """Prompts that a model decodes together; 0 for all, where they are not independent of each other.

    Expressions are decoded each alone where TEST.SENTENCES says so. Prompts are not independent if queries attend to
    those of other prompts, or if two-stage inference asks whether the image has any confident row.
    """
    if referring and cfg.TEST.SENTENCES.endswith("alone"):
        return 1
    inference = cfg.MODEL.INFERENCE
    together = cfg.MODEL.ADAPTER.INTERACTION == "image" or (inference.TWO_STAGE and inference.TWO_STAGE_KEEP != "all")
    return 0 if together else cfg.TEST.PROMPT_CHUNK


def predict(
    model: nn.Module, batch: list[dict[str, Any]], tasks: tuple[str, ...], chunk: int
) -> Iterator[dict[str, Any]]:
    """The results of `OpenWorldSAM.forward`, in order; images with more prompts than the chunk go by themselves."""
    large = [bool(chunk) and len(inputs["prompts"]) > chunk for inputs in batch]
    small = [inputs for inputs, alone in zip(batch, large, strict=True) if not alone]
    together = iter(model(small, tasks=tasks) if small else [])
    for inputs, alone in zip(batch, large, strict=True):
        yield stream(model, inputs, tasks, chunk) if alone else next(together)


@torch.no_grad()
def stream(model: Any, inputs: Mapping[str, Any], tasks: Collection[str], chunk: int) -> dict[str, Any]:
    """What the forward pass answers about one image.

    Args:
        model: an `OpenWorldSAM` in eval mode, its prompts independent of each other.
        inputs: as for its forward pass, with height and width, without embeddings; at least one prompt, no class twice.
        tasks: as for its forward pass.
        chunk: prompts decoded at a time, at least 1.

    Returns:
        a result of `OpenWorldSAM.forward`.
    """
    prompts, size = inputs["prompts"], (inputs["height"], inputs["width"])
    class_ids = torch.as_tensor(inputs.get("class_ids", range(len(prompts))), device=model.device)
    is_thing = torch.as_tensor(inputs.get("is_thing", [True] * len(prompts)), device=model.device)
    image, image_index = [inputs["image"].to(model.device)], torch.zeros(len(prompts), dtype=torch.long)
    features = model.encode_images(image)
    embeddings = model.encode_prompts(model.prompt_inputs(image), prompts, image_index)
    merge = SemanticMerge(size, inputs.get("num_classes", len(prompts)), model.inference, model.device)
    useful: dict[str, list[MaskRows]] = {task: [] for task in tasks if task != "semantic"}
    best_scores = []
    for start in range(0, len(prompts), chunk):
        part = slice(start, start + chunk)
        (rows,) = model.query_rows(features, embeddings[part], image_index[part], model.inference)
        best_scores.append(rows.best_scores(len(embeddings[part])))
        asked = rows.labels + start
        by_class = rows._replace(labels=class_ids[asked])
        if "semantic" in tasks:
            merge.add(by_class)
        for task, kept in useful.items():
            own = by_class.select(is_thing[asked]) if task == "instance" else by_class
            kept.append(useful_rows(task, own, size, model.inference))
    things = dict(zip(class_ids.tolist(), is_thing.tolist(), strict=True))
    joined = {task: join_rows(kept) for task, kept in useful.items()}
    whole = {"best_scores": torch.cat(best_scores)} | ({"semantic": merge.labels} if "semantic" in tasks else {})
    return whole | _results(joined, size, things, model.inference)


def _results(
    rows: Mapping[str, MaskRows], size: tuple[int, int], is_thing: dict[int, bool], options: InferenceOptions
) -> dict[str, Any]:
    """The results of the tasks, each from its rows."""
    results: dict[str, Any] = {}
    if "instance" in rows:
        masks, scores, labels, boxes, _ = instance_inference(rows["instance"], size, options)
        found = {"pred_masks": masks, "pred_boxes": Boxes(boxes), "scores": scores, "pred_classes": labels}
        results["instances"] = Instances(size, **found)
    if "panoptic" in rows:
        panoptic = panoptic_inference(rows["panoptic"], size, is_thing, options)
        segments = [{"id": s.id, "category_id": s.label, "isthing": s.is_thing, "score": s.score} for s in panoptic[1]]
        results["panoptic_seg"] = (panoptic.map, segments)
    if "referring" in rows:  # the class of an expression is its place
        best = referring_inference(rows["referring"], size)
        results["referring"] = (best.masks, best.scores)
    return results
