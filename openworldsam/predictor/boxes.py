"""Boxes that go with texts: a thing that is shown, and which masks count.

Shapes: n boxes of a kind, R queries, h = w = 4S side of mask logits, H, W size of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from openworldsam.inference import Queries
from openworldsam.inference.queries import join, positive
from openworldsam.predictor.clicks import Clicks, checked_box, numbers
from openworldsam.predictor.image_session import ImageSession
from openworldsam.utils.text import brief

KINDS: dict[Any, str] = {"this": "this", "not": "not", "within": "within", 1: "this", 0: "not"}
"""Kinds of boxes by label; SAM's labels of positive and negative boxes are numbers."""
MOST = 0.5
"""Share of a mask's pixels that makes it lie in a box."""


class BoxPrompts(NamedTuple):
    """Boxes by kind, float32 [n, 4] each, x0 y0 x1 y1 in pixels.

    this: around things that are found for certain.
    without: masks that lie in one of these are taken away.
    within: if there is any, masks that lie in none of these are taken away.
    size: (H, W).
    """

    this: np.ndarray
    without: np.ndarray
    within: np.ndarray
    size: tuple[int, int]

    @classmethod
    def checked(
        cls, boxes: ArrayLike, labels: Sequence[Any] | None, size: tuple[int, int], num_prompts: int
    ) -> BoxPrompts:
        """Validate the arguments of `predict` for an image of size (H, W); without labels all boxes are "this".

        Raises:
            ValueError: a box outside the image or empty, labels that are not one for each box, or not one prompt for a
                "this" box, which does not say which is meant.
        """
        listed = np.atleast_2d(numbers(boxes, "boxes", "a list of x0, y0, x1, y1"))
        corners = [checked_box(box, size) for box in listed if listed.size]
        given = ["this"] * len(corners) if labels is None else np.array(labels, dtype=object).tolist()
        if not isinstance(given, list) or len(given) != len(corners):
            raise ValueError(f"one label for each box: got {brief(given)} for {len(corners)} boxes")
        for label in given:
            if not isinstance(label, (int, str)) or label not in KINDS:
                raise ValueError(f'a box label is "this" (or 1), "not" (or 0) or "within", got {brief(label)}')
        kinds = [KINDS[label] for label in given]
        if "this" in kinds and num_prompts != 1:
            raise ValueError(f'a "this" box goes with one prompt, got {num_prompts}: ask them one by one')

        def of_kind(name: str) -> np.ndarray:
            of_it = [box for box, kind in zip(corners, kinds, strict=True) if kind == name]
            return np.array(of_it, np.float32).reshape(-1, 4)

        return cls(of_kind("this"), of_kind("not"), of_kind("within"), size)

    def apply(self, session: ImageSession, queries: Queries) -> Queries:
        """Put the things in "this" boxes before the queries of the texts that the other boxes leave.

        Their scores are 1, as they are given, not predicted: they pass any threshold and replace their duplicates.
        """
        things = []
        for box in self.this:
            found = Clicks.checked((), None, box, self.size).decode(session.model, session.features, None)
            certain = torch.ones(1)
            things.append(found._replace(predicted_iou=certain, match=None if queries.match is None else certain))
        return join([*things, self._allowed(queries)])

    def _allowed(self, queries: Queries) -> Queries:
        """Take away masks that lie in a "not" box, or in no "within" box if there is any."""
        boxes = torch.from_numpy(np.concatenate([self.without, self.within]))
        if not len(boxes):
            return queries
        covered = positive(queries.logits)  # [R, h, w]
        corners = boxes.view(-1, 2, 2) / torch.tensor(self.size[::-1]) * covered.shape[-1]
        corners = torch.stack([corners[:, 0].floor(), corners[:, 1].ceil()], dim=1).int()
        counts = [covered.sum(dim=(1, 2))]
        counts += [covered[:, y0:y1, x0:x1].sum(dim=(1, 2)) for (x0, y0), (x1, y1) in corners.tolist()]
        area, *inside = torch.stack(counts).cpu()
        lies = torch.stack(inside) >= (MOST * area).clamp(min=1)  # [n, R]
        unwanted, wanted = lies.split([len(self.without), len(self.within)])
        allowed = ~unwanted.any(dim=0)
        return queries.select(allowed & wanted.any(dim=0) if len(wanted) else allowed)
