"""Trackers: locate known objects in the next frame by SAM2's memory, or by asking the prompts again.

Shapes: T objects, N masks found by prompts, H, W size of the video.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from openworldsam.inference.nms import mask_boxes, mask_iou
from openworldsam.inference.queries import upsampled
from openworldsam.modeling import ImageFeatures
from openworldsam.predictor.prediction import Prediction
from openworldsam.utils.device import upload
from openworldsam.video.memory import ObjectMemory, SAM2Memory

Size = tuple[int, int]
"""Height and width in pixels."""
SAME_OBJECT = 0.5
"""IoU above which a found mask is a known object in the same frame."""
MOVED = 0.3
"""IoU above which a found mask of the same prompt is an object of the previous frame that has moved."""


class TrackedFrame(NamedTuple):
    """Objects visible in a frame.

    masks: bool [H, W] by id; may overlap.
    scores: 0..1 by id; by MODEL.INFERENCE.SCORE if a prompt found the mask, SAM2's probability of presence if memory
        carried it.
    id_map: uint16 [H, W], object id per pixel, 0 = background.
    evidence: `Prediction.evidence` by id, of the masks that a prompt found.
    """

    masks: dict[int, np.ndarray]
    scores: dict[int, float]
    id_map: np.ndarray
    evidence: dict[int, dict[str, float]]


class Tracker(ABC):
    """Follows the objects of one clip; `frame` is the number of a frame, `features` are its image features."""

    needs_prompts: bool
    """Whether `locate` needs the masks that the prompts find in every frame."""

    @abstractmethod
    def locate(
        self, frame: int, features: ImageFeatures, found: Prediction | None, size: tuple[int, int]
    ) -> TrackedFrame:
        """Locate the known objects in a frame of a size; `found` is what the prompts find in it."""

    @abstractmethod
    def begin(self, object_id: int, prompt: int, frame: int, features: ImageFeatures, mask: np.ndarray) -> None:
        """Start to follow an object, given its id, its prompt's index and its mask bool [H, W] in this frame."""

    @abstractmethod
    def forget(self, object_id: int) -> None:
        """Stop following an object."""


class MemoryTracker(Tracker):
    """Follows objects by SAM2's memory."""

    needs_prompts = False

    def __init__(self, sam2: SAM2Memory) -> None:
        self.sam2 = sam2
        self.memories: dict[int, ObjectMemory] = {}

    def locate(
        self, frame: int, features: ImageFeatures, found: Prediction | None, size: tuple[int, int]
    ) -> TrackedFrame:
        best = features.embed.new_zeros(size)
        id_map = torch.zeros(size, dtype=torch.int32, device=best.device)
        masks, presences = [best[None] > 0], [best.new_zeros(1)]
        for object_id, memory in self.memories.items():
            with torch.no_grad():
                logits, presence = self.sam2.carry_on(frame, features, memory)
            ((_, full),) = upsampled(logits, size)
            masks.append(full > 0)
            presences.append(presence.sigmoid())
            id_map = torch.where(full[0] > best, object_id, id_map)  # the highest logit wins
            best = best.maximum(full[0])
        objects = zip(self.memories, torch.cat(masks)[1:].cpu().numpy(), torch.cat(presences)[1:].tolist(), strict=True)
        seen = {object_id: (mask, score) for object_id, mask, score in objects if mask.any()}
        return TrackedFrame(
            {object_id: mask for object_id, (mask, _) in seen.items()},
            {object_id: score for object_id, (_, score) in seen.items()},
            id_map.cpu().numpy().astype(np.uint16),
            {},
        )

    def begin(self, object_id: int, prompt: int, frame: int, features: ImageFeatures, mask: np.ndarray) -> None:
        with torch.no_grad():
            masks = upload(torch.from_numpy(mask)[None], features.embed.device)
            self.memories[object_id] = self.sam2.begin(frame, features, masks)

    def forget(self, object_id: int) -> None:
        del self.memories[object_id]


class DetectionTracker(Tracker):
    """Links masks of the same prompt, for weights without video modules."""

    needs_prompts = True

    def __init__(self) -> None:
        self.prompts: dict[int, int] = {}
        self.last: dict[int, np.ndarray] = {}
        """Last mask of each object."""

    def locate(
        self, frame: int, features: ImageFeatures, found: Prediction | None, size: tuple[int, int]
    ) -> TrackedFrame:
        assert found is not None
        ids = list(self.last)
        known = np.stack([*self.last.values()]) if ids else np.zeros((0, *size), bool)
        prompts = np.array([self.prompts[id_] for id_ in ids], int)
        same_prompt = prompts[:, None] == found.prompt_index
        # first link objects that moved a little, then lost ones that return within their own size
        pairs = associate(np.where(same_prompt, iou_between(known, found.masks) - MOVED, 0))
        seen, used = [row for row, _ in pairs], [column for _, column in pairs]
        # a mask over a visible object is that object again, not one hidden behind it
        taken = (iou_between(found.masks[used], found.masks) > SAME_OBJECT).any(axis=0)
        lost = same_prompt & ~np.isin(np.arange(len(ids)), seen)[:, None] & ~taken
        boxes = mask_boxes(torch.from_numpy(known)).numpy()
        pairs += associate(np.where(lost, nearness(boxes, found.boxes), 0))
        masks = {ids[row]: found.masks[column] for row, column in pairs}
        scores = {ids[row]: float(found.scores[column]) for row, column in pairs}
        self.last.update(masks)
        id_map = np.zeros(size, np.uint16)
        for object_id in sorted(masks, key=scores.__getitem__):
            id_map[masks[object_id]] = object_id
        return TrackedFrame(masks, scores, id_map, {ids[row]: found.evidence(column) for row, column in pairs})

    def begin(self, object_id: int, prompt: int, frame: int, features: ImageFeatures, mask: np.ndarray) -> None:
        self.prompts[object_id], self.last[object_id] = prompt, mask

    def forget(self, object_id: int) -> None:
        del self.prompts[object_id], self.last[object_id]


def iou_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of bool masks [T, H, W] and [N, H, W]: float64 [T, N]."""
    return mask_iou(torch.from_numpy(np.concatenate([a, b])))[: len(a), len(a) :].numpy()


def nearness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rate [T, N] how near the centres of boxes [T, 4] and [N, 4], x0 y0 x1 y1, are.

    1 is the same centre, 0 a distance of the larger box's diagonal; farther centres are below 0.
    """
    between = (a[:, None, :2] + a[:, None, 2:] - b[:, :2] - b[:, 2:]) / 2
    diagonal = [np.hypot(*(boxes[:, 2:] - boxes[:, :2]).T) for boxes in (a, b)]
    return 1 - np.hypot(between[..., 0], between[..., 1]) / np.maximum(diagonal[0][:, None], diagonal[1])


def associate(gain: np.ndarray) -> list[tuple[int, int]]:
    """Pair rows and columns of a matrix [T, N] for the largest total gain (Hungarian); only gains above 0 pair."""
    rows, columns = linear_sum_assignment(np.maximum(gain, 0), maximize=True)
    return [(row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True) if gain[row, column] > 0]
