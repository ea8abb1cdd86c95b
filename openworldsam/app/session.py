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

from openworldsam.annotate.prompts import split_mark
from openworldsam.data.datasets.coco import COCO_STUFF
from openworldsam.predictor.prediction import Found, Prediction
from openworldsam.predictor.predictor import OpenWorldSAMPredictor
from openworldsam.visualization import Drawing, at_drawn_size, draw_masks

THRESHOLDS: dict[str, tuple[str, ...]] = {
    "instance": ("score_threshold", "nms_threshold"),
    "panoptic": ("score_threshold", "nms_threshold", "overlap_threshold"),
    "semantic": (),
    "referring": (),
}
"""The thresholds that each task has."""
DISJOINT = ("panoptic", "semantic")
"""The tasks in which a pixel has one mask."""
MAX_PROMPTS = 100
MAX_CHARACTERS = 300
"""Of a prompt."""


class Click(NamedTuple):
    """A click: on which mask, by its row (from 0), x y in pixels, label 1 to add there and 0 to take away."""

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
        self._rows: list[int] = []  # of the masks that are shown; one that lost all its pixels is not
        with lock:
            self._predictor.set_image(image)

    def ask(self, prompts: Sequence[str], task: str, thresholds: Mapping[str, float]) -> None:
        """Find what texts name. Clicks so far are forgotten, as they were on masks that may be there no more.

        Masks are computed for new prompts alone: other thresholds or tasks choose from those that there are.

        Args:
            prompts: the texts. Panoptic segmentation treats as stuff COCO's classes, the Shapes world's, and those
                marked "stuff: wet sand"; "thing: sand" is a thing all the same.
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
        kinds = dict(map(split_mark, prompts))
        usual = {*COCO_STUFF, *self._predictor.cfg.DATASETS.SHAPES.TEXTURES}
        stuff = [text for text, thing in kinds.items() if (text.lower() in usual if thing is None else not thing)]
        with self._lock:
            self.found = self._predictor.predict(list(kinds), task, stuff=stuff, **options)
        self.shown, self.selected = self.found, None
        self._clicks, self._answers, self._rows = [], {}, list(range(len(self.found.masks)))

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
            ValueError: nothing was asked yet, a new mask begins with a negative click, or no pixel of the mask is left.
        """
        if self.found is None or self.shown is None:
            raise ValueError("ask something first: clicks correct the answer")
        if self.selected is None and not label:
            raise ValueError("single a mask out first, from which the click takes away")
        after_last = max(len(self.found.masks), *(row + 1 for row in self._answers), 0)
        row = after_last if self.selected is None else self._rows[self.selected]
        self._clicks.append(Click(row, x, y, label))
        try:
            self._correct(row)
        except ValueError:
            self._clicks.pop()
            raise
        self.selected = self._rows.index(row)

    def undo(self) -> None:
        """Take the last click back.

        Raises:
            ValueError: there is none.
        """
        if not self._clicks:
            raise ValueError("there is no click to take back")
        row = self._clicks.pop().row
        self._correct(row)
        self.selected = self._rows.index(row) if row in self._rows else None

    def _correct(self, row: int) -> None:
        """Answer all clicks on a mask anew: the result does not depend on those that were taken back."""
        assert self.found
        own = [click for click in self._clicks if click.row == row]
        if own:
            mask = self.found.mask_prompt(row) if row < len(self.found.masks) else None  # else clicks stand alone
            with self._lock:
                answer = self._predictor.click([(c.x, c.y) for c in own], [c.label for c in own], mask=mask)
            if not len(answer.masks):
                raise ValueError("this click would leave no pixel of the mask")
            self._answers[row] = answer
        else:
            del self._answers[row]
        latest_last = dict.fromkeys(click.row for click in reversed(self._clicks))
        self.shown, self._rows = with_clicks(self.found, {row: self._answers[row] for row in reversed(latest_last)})

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


def with_clicks(found: Prediction, answers: dict[int, Prediction]) -> tuple[Prediction, list[int]]:
    """Masks found by texts, with some replaced and some added by clicks.

    Args:
        found: N masks.
        answers: of one mask each, by the row that they replace; from N on they are added, as "object". Where masks
            may not overlap they take pixels from the others, the last from all.

    Returns:
        the masks that still have a pixel, N + M at most, and the row of each.
    """
    rows = sorted({*range(len(found.masks)), *answers})
    if not rows:
        return found, rows
    sources = [(answers[row], 0) if row in answers else (found, row) for row in rows]
    masks = np.stack([source.masks[n] for source, n in sources])
    for row in reversed(answers) if found.task in DISJOINT else ():
        masks[np.array(rows) != row] &= ~masks[rows.index(row)]
    scores = np.stack([source.scores[n] for source, n in sources])
    labels = np.array([found.prompt_index[row] if row < len(found.masks) else len(found.prompts) for row in rows])
    left = masks.any(axis=(1, 2))
    joined = Found(*(torch.from_numpy(part[left]) for part in (masks, scores, labels)))
    thing = dict(zip(found.prompt_index.tolist(), found.is_thing.tolist(), strict=True))
    prompts = [*found.prompts, *dict.fromkeys(answers[row].prompts[0] for row in rows[len(found.masks) :])]
    prediction = Prediction.of(
        joined,
        found.task,
        prompts,
        is_thing=[thing.get(index, True) for index in range(len(prompts))],
        threshold=found.threshold,
        best_score=found.best_score,
    )
    return prediction, np.array(rows)[left].tolist()
