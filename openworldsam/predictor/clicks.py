"""Clicks and a box in an image: checked, matched with masks found before, decoded (paper Table 3, "Inter Seg").

Shapes: t clicks, N masks found before, H, W size of the image in pixels, S side of the image features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou

from openworldsam.inference import Queries
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.predictor.prediction import Prediction
from openworldsam.utils.device import upload

CORNERS = (2, 3)
"""SAM2's labels of a box's top left and bottom right corner; 1 is a positive click, 0 a negative one."""
CERTAIN = 10.0
"""SAM2's logit of a pixel that is known to be in a mask; minus it outside."""


class Clicks(NamedTuple):
    """A user's clicks and box.

    points: float32 [t, 2], x y in pixels.
    labels: int64 [t], 1 positive, 0 negative.
    box: float32 [4], x0 y0 x1 y1 in pixels, or None.
    size: (H, W).
    """

    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None
    size: tuple[int, int]

    @classmethod
    def checked(
        cls, points: ArrayLike, labels: Sequence[int] | None, box: ArrayLike | None, size: tuple[int, int]
    ) -> Clicks:
        """Validate the arguments of `click` for an image of size (H, W); without labels all clicks are positive.

        Raises:
            ValueError: a click or box outside the image, an empty box, labels that are not one 0 or 1 per click.
        """
        height, width = size
        places = numbers(points, "points", "a list of pairs x, y")
        places = places.reshape(0, 2) if not places.size else places
        if places.ndim != 2 or places.shape[1] != 2:
            raise ValueError(f"points must be a list of pairs x, y; got the shape {places.shape}")
        for x, y in places.tolist():
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(f"the click ({x:g}, {y:g}) is outside the image of {width} x {height} pixels")
        kinds = numbers([1] * len(places) if labels is None else labels, "labels", "a list of 1 and 0")
        if kinds.shape != (len(places),):
            raise ValueError(f"one label for each click: got {kinds.size} labels for {len(places)} clicks")
        if not np.isin(kinds, (0, 1)).all():
            raise ValueError(f"a label is 1 (positive) or 0 (negative), got {kinds.tolist()}")
        corners = None if box is None else checked_box(box, size)
        return cls(places, kinds.astype(np.int64), corners, size)

    def pick(self, found: Prediction) -> tuple[np.ndarray, str, bool] | None:
        """Choose the mask to correct: most positive clicks in it, minus negative ones, plus the IoU of the boxes.

        Args:
            found: N masks; the higher score decides between equal ones.

        Returns:
            its `Prediction.mask_prompt`, its prompt and whether that is a thing; None if neither a click nor the
            box hits a mask.

        Raises:
            ValueError: there is neither a positive click nor a box, or `found` is of another image.
        """
        if not isinstance(found, Prediction):
            raise ValueError(f"among is what predict gave, got {type(found).__name__}")
        if found.label_map.shape != self.size:
            theirs, ours = (f"{width} x {height}" for height, width in (found.label_map.shape, self.size))
            raise ValueError(f"among is a result about another image: {theirs} pixels, not {ours}")
        if self.box is None and not self.labels.any():
            raise ValueError("a positive click or a box says which mask of among is meant; got neither")
        x, y = self.points.astype(np.int64).T
        inside = found.masks[:, y, x]  # [N, t]
        hits = inside[:, self.labels == 1].sum(axis=1, dtype=np.float64)
        if self.box is not None:
            boxes, box = torch.from_numpy(found.boxes), torch.from_numpy(self.box)
            hits += box_iou(boxes, box[None])[:, 0].numpy()
        if not hits.any():
            return None
        fit = np.where(hits > 0, hits - inside[:, self.labels == 0].sum(axis=1), -np.inf)
        best = np.lexsort((found.scores, fit))[-1]
        return found.mask_prompt(best), found.prompts[found.prompt_index[best]], bool(found.is_thing[best])

    def tokens(self, side: int) -> tuple[Tensor, Tensor]:
        """Points [t (+ 2), 2] in pixels of SAM2's input, and labels [t (+ 2)]; the box's corners come first."""
        corners = np.zeros((0, 2), np.float32) if self.box is None else self.box.reshape(2, 2)
        points = torch.from_numpy(np.concatenate([corners, self.points]))
        labels = torch.tensor([*CORNERS[: len(corners)], *self.labels.tolist()])
        return points / torch.tensor(self.size[::-1]) * side, labels

    def decode(self, model: OpenWorldSAM, features: ImageFeatures, mask: ArrayLike | None) -> Queries:
        """Decode clicks, box and the mask to correct, logits [4S, 4S] or bool [H, W], to one query.

        Raises:
            ValueError: there is neither click, box nor mask, or the mask has another size.
        """
        if mask is None and self.box is None and not len(self.points):
            raise ValueError("nothing to segment by: give points, a box or a mask")
        side = 4 * model.image_encoder.feature_side
        logits = None if mask is None else upload(mask_logits(mask, side, self.size), model.device)
        points, labels = (upload(part, model.device) for part in self.tokens(model.image_encoder.image_size))
        with model.autocast():
            decoded, predicted_iou = model.mask_decoder.decode_clicks(features, points, labels, logits)
        return Queries.decoded(decoded, predicted_iou, torch.zeros(1, dtype=torch.long))


def checked_box(box: ArrayLike, size: tuple[int, int]) -> np.ndarray:
    """Validate a box in an image of size (H, W): float32 [4], x0 y0 x1 y1 in pixels.

    Raises:
        ValueError: it is none, empty, or outside the image.
    """
    corners = numbers(box, "box", "x0, y0, x1, y1")
    if corners.shape != (4,):
        raise ValueError(f"box must be x0, y0, x1, y1; got the shape {corners.shape}")
    (height, width), (x0, y0, x1, y1) = size, corners.tolist()
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        got = ", ".join(f"{value:g}" for value in (x0, y0, x1, y1))
        raise ValueError(f"box is x0, y0, x1, y1 within the image of {width} x {height} pixels, got {got}")
    return corners


def mask_logits(mask: ArrayLike, side: int, size: tuple[int, int]) -> Tensor:
    """Convert a mask in an image of size (H, W) to SAM2's prompt encoder's input, float32 [side, side], side = 4S.

    The mask is float [side, side], logits of an earlier result; or bool [H, W], which is reduced as SAM2's video
    predictor reduces the masks it is given.

    Raises:
        ValueError: it is neither.
    """
    values = numbers(mask, "mask", "one of the masks or logits of an earlier result")
    given = mask if isinstance(mask, Tensor) else np.asarray(mask)
    kind = str(given.dtype).removeprefix("torch.")
    if kind == "bool" and values.shape == size:
        logits = CERTAIN * (2 * torch.from_numpy(values) - 1)
        return interpolate(logits[None, None], (side, side), mode="bilinear", antialias=True)[0, 0]
    if kind != "bool" and values.shape == (side, side) and np.isfinite(values).all():
        return torch.from_numpy(values)
    raise ValueError(
        f"mask is one of the logits of an earlier result, finite and of shape ({side}, {side}), or bool and of the "
        f"image's shape {size}; got {kind} of shape {values.shape}"
    )


def numbers(values: Any, name: str, meaning: str) -> np.ndarray:
    """Convert to float32; ValueError if that is impossible."""
    try:
        return np.array(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {meaning}; got {values!r:.80}") from None
