"""Where the known objects are in the next frame: by SAM2's memory, or by asking the text again.

Shapes: T objects, N masks found by text, H, W size of the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from openworldsam.inference.nms import mask_boxes, mask_iou
from openworldsam.inference.queries import upsampled
from openworldsam.modeling import ImageFeatures
from openworldsam.predictor.prediction import Prediction
from openworldsam.video.memory import ObjectMemory, SAM2Memory

SAME_OBJECT = 0.5
"""A mask that text finds is a known object if its IoU with it exceeds this."""
MOVED = 0.3
"""A mask of the same text is the object of the frame before, moved, if the IoU with it exceeds this."""


@dataclass(frozen=True, eq=False)
class Located:
    """The known objects that are visible in a frame.

    masks: bool [H, W] by id; they may overlap.
    scores: by id, 0..1.
    id_map: uint16 [H, W], whose each pixel is; 0 is nobody's.
    """

    masks: dict[int, np.ndarray]
    scores: dict[int, float]
    id_map: np.ndarray


class Tracker(Protocol):
    """Keeps the objects of one clip apart."""

    needs_text: bool
    """Whether every frame is asked by text."""

    def locate(self, frame: int, features: ImageFeatures, found: Prediction | None, size: tuple[int, int]) -> Located:
        """Find the known objects in the frame of number `frame`, of H x W = `size`; `found` is what text found."""

    def begin(self, track: int, prompt: int, frame: int, features: ImageFeatures, mask: np.ndarray) -> None:
        """Know one more object: its id, which prompt found it, and its mask bool [H, W] in this frame."""

    def forget(self, track: int) -> None:
        """Know an object no more."""


class MemoryTracker:
    """By SAM2's memory. Scores are the probability that the object is there."""

    needs_text = False

    def __init__(self, sam2: SAM2Memory) -> None:
        self.sam2 = sam2
        self.memories: dict[int, ObjectMemory] = {}

    def locate(self, frame: int, features: ImageFeatures, found: Prediction | None, size: tuple[int, int]) -> Located:
        """See `Tracker`. Where objects overlap a pixel is that of the highest logit."""
        masks, scores = {}, {}
        best = features.embed.new_zeros(size)
        id_map = torch.zeros(size, dtype=torch.int32, device=best.device)
        for track, memory in self.memories.items():
            with torch.no_grad():
                logits, presence = self.sam2.carry_on(frame, features, memory)
            ((_, full),) = upsampled(logits, size)
            mask = full[0] > 0
            if not mask.any():
                continue
            masks[track], scores[track] = mask.cpu().numpy(), presence.sigmoid().item()
            id_map[full[0] > best] = track
            best = best.maximum(full[0])
        return Located(masks, scores, id_map.cpu().numpy().astype(np.uint16))

    def begin(self, track: int, prompt: int, frame: int, features: ImageFeatures, mask: np.ndarray) -> None:
        """See `Tracker`."""
        with torch.no_grad():
            masks = torch.from_numpy(mask)[None].to(features.embed.device)
            self.memories[track] = self.sam2.begin(frame, features, masks)

    def forget(self, track: int) -> None:
        """See `Tracker`."""
        del self.memories[track]


class DetectionTracker:
    """By text alone, for weights without video modules: masks of the same text are joined from frame to frame.

    Scores are the predicted IoU.
    """

    needs_text = True

    def __init__(self) -> None:
        self.prompts: dict[int, int] = {}
        self.last: dict[int, np.ndarray] = {}
        """The last mask of each object."""

    def locate(self, frame: int, features: ImageFeatures, found: Prediction | None, size: tuple[int, int]) -> Located:
        """See `Tracker`. First what has moved a little, then what was lost and comes back within its own size."""
        assert found is not None
        tracks = list(self.last)
        known = np.stack([self.last[track] for track in tracks]) if tracks else np.zeros((0, *size), bool)
        prompts = np.array([self.prompts[track] for track in tracks], int)
        same_text = prompts[:, None] == found.prompt_index
        pairs = associate(np.where(same_text, iou_between(known, found.masks) - MOVED, 0))
        seen, used = [row for row, _ in pairs], [column for _, column in pairs]
        # a mask over an object that is seen is that object again, not one that was lost behind it
        taken = (iou_between(found.masks[used], found.masks) > SAME_OBJECT).any(axis=0)
        lost = same_text & ~np.isin(np.arange(len(tracks)), seen)[:, None] & ~taken
        boxes = mask_boxes(torch.from_numpy(known)).numpy()
        pairs += associate(np.where(lost, nearness(boxes, found.boxes), 0))
        masks = {tracks[row]: found.masks[column] for row, column in pairs}
        scores = {tracks[row]: float(found.scores[column]) for row, column in pairs}
        self.last.update(masks)
        id_map = np.zeros(size, np.uint16)
        for track in sorted(masks, key=scores.__getitem__):
            id_map[masks[track]] = track
        return Located(masks, scores, id_map)

    def begin(self, track: int, prompt: int, frame: int, features: ImageFeatures, mask: np.ndarray) -> None:
        """See `Tracker`."""
        self.prompts[track], self.last[track] = prompt, mask

    def forget(self, track: int) -> None:
        """See `Tracker`."""
        del self.prompts[track], self.last[track]


def iou_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of bool masks [T, H, W] and [N, H, W]: float64 [T, N]."""
    return mask_iou(torch.from_numpy(np.concatenate([a, b])))[: len(a), len(a) :].numpy()


def nearness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 where boxes have one centre, falling to 0 where they are the larger one's diagonal apart, and on.

    Args:
        a, b: float [T, 4] and [N, 4], x0 y0 x1 y1.

    Returns:
        [T, N].
    """
    between = (a[:, None, :2] + a[:, None, 2:] - b[:, :2] - b[:, 2:]) / 2
    diagonal = [np.hypot(*(boxes[:, 2:] - boxes[:, :2]).T) for boxes in (a, b)]
    return 1 - np.hypot(between[..., 0], between[..., 1]) / np.maximum(diagonal[0][:, None], diagonal[1])


def associate(gain: np.ndarray) -> list[tuple[int, int]]:
    """The one-to-one pairs (row, column) of largest total gain (Hungarian), of a matrix [T, N]; only gains above 0."""
    rows, columns = linear_sum_assignment(np.maximum(gain, 0), maximize=True)
    return [(row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True) if gain[row, column] > 0]
