"""What one person does on the page: a picture, a question about it, and clicks that correct the answer.

Shapes: N masks found by texts, M by clicks alone, H, W size of the picture.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch

from openworldsam.data.datasets.coco import COCO_STUFF
from openworldsam.prediction import Found, Prediction
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.visualization import Drawing, at_drawn_size, draw_masks

THRESHOLDS: dict[str, tuple[str, ...]] = {
    "instance": ("score_threshold", "nms_threshold"),
    "panoptic": ("score_threshold", "nms_threshold", "overlap_threshold"),
    "semantic": (),
    "referring": (),
}
"""The thresholds that each task has."""
MAX_PROMPTS = 100
MAX_CHARACTERS = 300
"""Of a prompt."""


class Click(NamedTuple):
    """A click on the picture: on which mask (from 0), x y in pixels, label 1 to add there and 0 to take away."""

    row: int
    x: int
    y: int
    label: int


class Session:
    """One person's picture and all that is asked about it. The model is everybody's, the rest of nobody else.

    Args:
        predictor: shares its model.
        lock: of the model.
        image: uint8 [H, W, 3].
        name: of the picture's file.
    """

    def __init__(self, predictor: OpenWorldSAMPredictor, lock: Lock, image: np.ndarray, name: str) -> None:
        self.image, self.name = image, name
        self.found: Prediction | None = None
        """The answer to the last question, without clicks."""
        self.shown: Prediction | None = None
        """The N masks found, corrected by clicks, and then the M that clicks alone have made."""
        self.selected: int | None = None
        """The mask that is singled out, from 0."""
        self._predictor = copy.copy(predictor)  # with the same model, and a picture of its own
        self._lock = lock
        self._clicks: list[Click] = []
        self._answers: dict[int, Prediction] = {}
        with lock:
            self._predictor.set_image(image)

    def ask(self, prompts: Sequence[str], task: str, thresholds: Mapping[str, float]) -> None:
        """Find what texts name. Clicks so far are forgotten, as they were on masks that may be there no more.

        Masks are computed for new prompts alone: other thresholds or tasks choose from those that there are.

        Args:
            prompts: the texts.
            task: of `TASKS`.
            thresholds: by name; those that the task does not have are ignored.

        Raises:
            ValueError: no prompt, too many or too long ones, or as of `OpenWorldSAMPredictor.predict`.
        """
        prompts = list(dict.fromkeys(prompt.strip() for prompt in prompts))
        if not any(prompts):
            raise ValueError("no prompt: type what to look for, such as “dog”, and press Enter")
        if len(prompts) > MAX_PROMPTS or max(map(len, prompts)) > MAX_CHARACTERS:
            raise ValueError(f"at most {MAX_PROMPTS} prompts of {MAX_CHARACTERS} characters are read")
        options = {name: thresholds[name] for name in THRESHOLDS.get(task, ())}
        textures = self._predictor.cfg.DATASETS.SHAPES.TEXTURES
        with self._lock:
            self.found = self._predictor.predict(prompts, task, stuff=[*COCO_STUFF, *textures], **options)
        self.shown, self.selected = self.found, None
        self._clicks, self._answers = [], {}

    def pixel(self, x: float, y: float) -> tuple[int, int]:
        """The pixel of the picture under a place of `picture()`, which may be enlarged or reduced: x y to x y."""
        height, width = self.image.shape[:2]
        drawn_height, drawn_width = at_drawn_size(self.image).shape[:2]
        return min(int(x * width / drawn_width), width - 1), min(int(y * height / drawn_height), height - 1)

    def mask_at(self, x: int, y: int) -> int | None:
        """The mask that is on top at a pixel."""
        shown = self.shown
        return int(shown.label_map[y, x]) - 1 if shown and shown.label_map[y, x] else None

    def click(self, x: int, y: int, label: int) -> None:
        """Correct the mask that is singled out, or make one where none is.

        Args:
            x, y: in pixels.
            label: 1 if the place belongs to the mask, 0 if not.

        Raises:
            ValueError: nothing was asked yet, the task's masks cannot be corrected, a new mask begins with a negative
                click, or no pixel of the mask is left.
        """
        if self.found is None or self.shown is None:
            raise ValueError("ask something first: clicks correct the answer")
        count = len(self.shown.masks)
        row = count if self.selected is None else self.selected
        if row < len(self.found.masks) and self.found.logits is None:
            raise ValueError(f"masks of {self.found.task} segmentation cannot be corrected; choose instance")
        if row == count and not label:
            raise ValueError("single a mask out first, from which the click takes away")
        self._clicks.append(Click(row, x, y, label))
        try:
            self._correct(row)
        except ValueError:
            self._clicks.pop()
            raise
        self.selected = row

    def undo(self) -> None:
        """Take the last click back.

        Raises:
            ValueError: there is none.
        """
        if not self._clicks:
            raise ValueError("there is no click to take back")
        row = self._clicks.pop().row
        self._correct(row)
        self.selected = row if self.shown and row < len(self.shown.masks) else None

    def _correct(self, row: int) -> None:
        """Answer all clicks on a mask anew: the result does not depend on those that were taken back."""
        assert self.found
        own = [click for click in self._clicks if click.row == row]
        if own:
            logits = self.found.logits
            mask = logits[row] if logits is not None and row < len(logits) else None  # else clicks stand alone
            with self._lock:
                answer = self._predictor.click([(c.x, c.y) for c in own], [c.label for c in own], mask=mask)
            if not len(answer.masks):
                raise ValueError("this click would leave no pixel of the mask")
            self._answers[row] = answer
        else:
            del self._answers[row]
        self.shown = with_clicks(self.found, self._answers)

    def picture(self) -> np.ndarray:
        """The picture with the masks over it, or the one that is singled out on a darkened picture: [h, w, 3]."""
        shown = self.shown
        if shown is None:
            return at_drawn_size(self.image)
        if self.selected is None:
            return draw_masks(self.image, shown, scores=True)
        one = slice(self.selected, self.selected + 1)
        parts = shown.masks[one], shown.scores[one], shown.prompt_index[one]
        image = np.where(shown.masks[self.selected][..., None], self.image, self.image // 3)
        return draw_masks(image, Drawing(shown.task, shown.prompts, *parts), alpha=0.25, scores=True)

    def table(self) -> list[list[str | float]]:
        """A row for each mask: its number from 1, prompt, score and share of the picture in per cent."""
        shown = self.shown
        if shown is None:
            return []
        return [
            [n + 1, shown.prompts[shown.prompt_index[n]], round(float(shown.scores[n]), 3), round(100 * mask.mean(), 2)]
            for n, mask in enumerate(shown.masks)
        ]


def with_clicks(found: Prediction, answers: Mapping[int, Prediction]) -> Prediction:
    """Masks found by texts, with some replaced and some added by clicks.

    Args:
        found: N masks.
        answers: of one mask each, by the row that they replace; from N on they are added, as "object".

    Returns:
        N + M masks.
    """
    count = len(found.masks)
    rows = range(max(count, *(row + 1 for row in answers)) if answers else count)
    sources = [(answers[row], 0) if row in answers else (found, row) for row in rows]
    if not sources:
        return found
    added = [answers[row].prompts[0] for row in rows[count:]]
    thing = dict(zip(found.prompt_index.tolist(), found.is_thing.tolist(), strict=True))
    joined = Found(
        torch.from_numpy(np.stack([source.masks[n] for source, n in sources])),
        torch.from_numpy(np.stack([source.scores[n] for source, n in sources])),
        torch.tensor([*found.prompt_index.tolist(), *[len(found.prompts)] * len(added)]),
    )
    prompts = [*found.prompts, *dict.fromkeys(added)]
    return Prediction.of(
        joined,
        found.task,
        prompts,
        is_thing=[thing.get(index, True) for index in range(len(prompts))],
        threshold=found.threshold,
        best_score=found.best_score,
    )
