"""Masks from an image and texts: encode the image once, ask as often as you like.

What a question shares with earlier ones about the image is not computed again; see `AskedImage`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from openworldsam.asked_image import AskedImage, EncodedImage, encoder_identity
from openworldsam.checkpoint import load_weights
from openworldsam.config import load_config, merge_options
from openworldsam.data.datasets.coco import COCO_STUFF
from openworldsam.data.preprocessing import ImageLike, read_image, to_tensor
from openworldsam.device import checked_device, usable_device
from openworldsam.inference import (
    InferenceOptions,
    MaskRows,
    instance_inference,
    panoptic_inference,
    referring_inference,
    semantic_inference,
)
from openworldsam.inference.nms import mask_boxes
from openworldsam.modeling import TASKS, ImageFeatures, OpenWorldSAM
from openworldsam.modeling.prompt_encoders import check_prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The N masks found in an image of H x W pixels.

    task: "semantic", "instance", "panoptic" or "referring".
    prompts: the P texts, as given.
    masks: bool [N, H, W]; disjoint for semantic and panoptic.
    scores: float32 [N], predicted IoU in 0..1 (semantic: of the prompt's best query).
    boxes: float32 [N, 4], x0 y0 x1 y1 in pixels, right and bottom exclusive.
    prompt_index: int64 [N], which of the prompts each mask answers.
    is_thing: bool [N]; False where the prompt names stuff.
    label_map: int32 [H, W], 0 where there is no mask, n + 1 for masks[n]; where masks overlap the best score wins.
    best_score: highest predicted IoU of any query, found or not; 0 without prompts.
    """

    task: str
    prompts: tuple[str, ...]
    masks: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    prompt_index: np.ndarray
    is_thing: np.ndarray
    label_map: np.ndarray
    best_score: float


class OpenWorldSAMPredictor:
    """Segments what texts name in one image at a time.

        predictor = OpenWorldSAMPredictor("configs/presets/released.yaml", opts=["MODEL.WEIGHTS", "model_final.pth"])
        predictor.set_image("zebra.jpg")
        result = predictor.predict(["zebra", "grass"], task="panoptic")

    Args:
        cfg: a config, or the path of one.
        device: "cpu", "cuda", "mps"; by default MODEL.DEVICE, or the CPU where that does not exist.
        opts: KEY VALUE pairs that override the config.

    Raises:
        FileNotFoundError: a config, weight or tokenizer file is missing.
        KeyError: a config key that does not exist.
        ValueError: the weights do not fit the config, or there is no such device.
    """

    def __init__(self, cfg: CfgNode | str | Path, *, device: str | None = None, opts: Sequence[str] = ()) -> None:
        if isinstance(cfg, (str, Path)):
            cfg = load_config(cfg, opts)
        else:
            cfg = cfg.clone()
            merge_options(cfg, opts)
        self.cfg = cfg
        target = checked_device(device) if device else usable_device(cfg.MODEL.DEVICE)
        self.model = OpenWorldSAM(cfg)
        self.model.prompt_encoder.prepare()
        self.sources = load_weights(self.model, cfg)
        self.model.to(target).eval()
        self._image: AskedImage | None = None

    def set_image(self, image: ImageLike) -> None:
        """Encode an image; later predictions are about it.

        Args:
            image: path, PIL image, or uint8 array [H, W], [H, W, 3] or [H, W, 4] in RGB order. EXIF rotation is
                applied to files and PIL images.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a readable image.
        """
        pixels = to_tensor(read_image(image)).to(self.model.device)
        encoded = EncodedImage(
            self.model.encode_images([pixels]), self.model.prompt_inputs([pixels]), (pixels.shape[1], pixels.shape[2])
        )
        self._image = AskedImage(self.model, encoded)

    def save_image(self, path: str | Path) -> None:
        """Write the encoded image, for `load_image` of a later process; 17 MB for the full-size model.

        Args:
            path: the .safetensors file; one that is there is replaced.

        Raises:
            ValueError: no image set.
            OSError: it cannot be written.
        """
        self._asked().encoded.save(Path(path), encoder_identity(self.cfg, self.sources))

    def load_image(self, path: str | Path) -> None:
        """Set the image that `save_image` wrote, without encoding it. Its prompts are encoded anew.

        Args:
            path: the file. Any adapter and prompt weights may ask about it; SAM2's weights, the sizes and the
                precision must be those that made it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or another image encoder made it.
        """
        identity = encoder_identity(self.cfg, self.sources)
        self._image = AskedImage(self.model, EncodedImage.load(Path(path), identity, self.model.device))

    def _asked(self) -> AskedImage:
        if self._image is None:
            raise ValueError("no image: call set_image first")
        return self._image

    @property
    def features(self) -> ImageFeatures:
        """What SAM2 sees of the image that is set, B = 1.

        Raises:
            ValueError: no image set.
        """
        return self._asked().encoded.features

    @torch.no_grad()
    def predict(
        self,
        prompts: str | Sequence[str],
        task: str = "instance",
        *,
        stuff: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Prediction:
        """Segment what the prompts name.

        Args:
            prompts: one text or several. Under `INTERACTION: image` they influence each other.
            task: "semantic" gives every pixel to a prompt; "instance" finds each occurrence; "panoptic" does both
                without overlap; "referring" gives the one best mask of each prompt.
            stuff: the prompts that name regions rather than objects, whatever their case; by default those that
                are stuff classes of COCO, such as "grass" or "sky". Only panoptic segmentation treats them apart.
            **options: fields of `InferenceOptions` that differ from the config, such as score_threshold=0.5.
                "referring" has no threshold unless it is given here; "semantic" has none.

        Returns:
            at most K masks for per prompt, K = 20 tie-breakers in the public weights.

        Raises:
            ValueError: no image set, an unknown task or option, an empty prompt or one that is not a text.
        """
        image = self._asked()
        if task not in TASKS:
            raise ValueError(f"task is one of {', '.join(TASKS)}; got {task!r}")
        if unknown := options.keys() - InferenceOptions.__dataclass_fields__.keys():
            names = ", ".join(InferenceOptions.__dataclass_fields__)
            raise ValueError(f"unknown option {', '.join(sorted(unknown))}; there are {names}")
        prompts = _as_list(prompts)
        inference = replace(self.model.inference, **options)
        stuff_names = COCO_STUFF if stuff is None else {_normal(name) for name in _as_list(stuff)}
        is_thing = [_normal(prompt) not in stuff_names for prompt in prompts]
        rows = image.rows(prompts, inference) if prompts else self.model.no_rows()
        size = image.encoded.size
        if len(rows.scores):
            found = _found(task, rows, size, is_thing, inference, options.get("score_threshold", 0.0))
        else:
            found = _Found(rows.labels.new_zeros(0, *size, dtype=torch.bool), rows.scores, rows.labels)
        masks, scores = found.masks.cpu().numpy(), found.scores.cpu().numpy()
        labels = found.labels.cpu().numpy()
        return Prediction(
            task=task,
            prompts=tuple(prompts),
            masks=masks,
            scores=scores,
            boxes=mask_boxes(found.masks).cpu().numpy(),
            prompt_index=labels,
            is_thing=np.array(is_thing, dtype=bool)[labels],
            label_map=_label_map(masks, scores),
            best_score=float(rows.scores.max()) if len(rows.scores) else 0.0,
        )


class _Found(NamedTuple):
    """masks bool [N, H, W], scores [N], labels [N] indices of prompts."""

    masks: Tensor
    scores: Tensor
    labels: Tensor


def _found(
    task: str,
    rows: MaskRows,
    size: tuple[int, int],
    is_thing: list[bool],
    inference: InferenceOptions,
    smallest: float,
) -> _Found:
    """Apply one task's inference to the query rows, labelled by prompt."""
    if task == "instance":
        instances = instance_inference(rows, size, inference)
        return _Found(instances.masks, instances.scores, instances.labels)
    if task == "panoptic":
        result = panoptic_inference(rows, size, dict(enumerate(is_thing)), inference)
        ids = torch.tensor([s.id for s in result.segments], device=rows.labels.device)
        scores = torch.tensor([s.score for s in result.segments])
        labels = torch.tensor([s.label for s in result.segments], dtype=torch.long)
        return _Found(result.map == ids[:, None, None], scores, labels)
    if task == "referring":
        best = referring_inference(rows.select(rows.scores >= smallest), size)
        found = best.masks.flatten(1).any(dim=1)
        return _Found(best.masks[found], best.scores[found], best.labels[found])
    label_map = semantic_inference(rows, size, len(is_thing), inference)
    labels = label_map.unique()
    scores = torch.stack([rows.scores[rows.labels == label].max() for label in labels])
    return _Found(label_map == labels[:, None, None], scores, labels)


def _as_list(texts: str | Sequence[str]) -> list[str]:
    """One text or several as a checked list."""
    try:
        listed = [texts] if isinstance(texts, str) else list(texts)
    except TypeError:
        raise ValueError(f"prompts are a text or a list of texts, got {type(texts).__name__}") from None
    check_prompts(listed)
    return listed


def _normal(name: str) -> str:
    return name.strip().lower()


def _label_map(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Number the masks from 1, better scores over worse: bool [N, H, W] and [N] -> int32 [H, W]."""
    label_map = np.zeros(masks.shape[1:], dtype=np.int32)
    for index in np.argsort(scores, kind="stable"):
        label_map[masks[index]] = index + 1
    return label_map
