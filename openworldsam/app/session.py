"""State of one browser tab: an image, the answer to a question about it, and corrections by clicks.

A slot numbers a mask for as long as the question stands: 0..N-1 the masks that texts found, N and up those that clicks
added. A mask that lost all its pixels to others is not shown but keeps its slot.

Shapes: N masks found by texts, M added by clicks, H, W size of the image.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from openworldsam.annotate.prompts import add_prompt
from openworldsam.data.datasets.coco import COCO_STUFF
from openworldsam.inference import SCORES, TASKS, Found
from openworldsam.modeling.prompt_encoders import clean_prompts
from openworldsam.predictor import OpenWorldSAMPredictor, Prediction
from openworldsam.utils.files import png_bytes
from openworldsam.utils.text import brief
from openworldsam.visualization import at_drawn_size, draw_clicks, draw_masks, draw_prediction

TASK_THRESHOLDS: dict[str, tuple[str, ...]] = {
    "instance": ("score_threshold", "nms_threshold"),
    "panoptic": ("score_threshold", "nms_threshold", "overlap_threshold"),
    "semantic": (),
    "referring": (),
}
SCORE_NAMES = {"match": SCORES["match"], "predicted_iou": SCORES["iou"]}
"""Scores of a mask in words, by their names in `Prediction.evidence`."""
DISJOINT = ("panoptic", "semantic")
"""Tasks in which masks do not overlap."""
MAX_PROMPTS = 100
MAX_CHARACTERS = 300
"""Per prompt."""
MAX_CLICKS = 100
"""Per question; each may add a mask."""


class Click(NamedTuple):
    """A click on the mask of a slot: x, y in pixels; label 1 adds the place to the mask, 0 removes it."""

    slot: int
    x: int
    y: int
    label: int


class Session:
    """The image of one browser tab, uint8 [H, W, 3], and all questions about it.

    Args:
        max_work: pixels of all masks that the model may make for a question, before the best are chosen.
        warning: about the image, for the page to show beside answers.

    Attributes:
        found: answer to the last question, without clicks.
        shown: the N masks found, corrected by clicks, then the M that clicks added; without those that have no pixel.
        selected: index of the selected mask in `shown`, or None.
    """

    def __init__(
        self, predictor: OpenWorldSAMPredictor, image: np.ndarray, name: str, max_work: int, warning: str = ""
    ) -> None:
        self.image, self.name, self.max_work, self.warning = image, name, max_work, warning
        self.found: Prediction | None = None
        self.shown: Prediction | None = None
        self.selected: int | None = None
        self._predictor, self._encoded = predictor, predictor.encode(image)
        self._columns = score_columns(predictor)
        self._clicks: list[Click] = []
        self._answers: dict[int, Prediction] = {}  # to clicks, by slot
        self._slots: list[int] = []  # of the shown masks

    def ask(self, prompts: Sequence[str], task: str, thresholds: Mapping[str, float]) -> None:
        """Segment what the prompts name, and forget all clicks, as their masks may be gone.

        The model runs for new prompts only: another threshold or task filters the masks that exist.

        Args:
            prompts: texts. In panoptic segmentation those that name stuff of COCO or the Shapes world are stuff;
                the marks "stuff: wet sand" and "thing: sand" overrule that.
            task: one of `TASKS`.
            thresholds: by name; those that do not apply to the task are ignored.

        Raises:
            ValueError: no prompt, too many or too long ones, too many for an image of this size, or see
                `OpenWorldSAMPredictor.predict`.
        """
        if not isinstance(task, str) or task not in TASKS:
            raise ValueError(f"task is one of {', '.join(TASKS)}; got {brief(task)}")
        if not isinstance(prompts, (list, tuple)):
            raise ValueError(f"prompts are a list of texts, got {brief(prompts)}")
        if not any(prompt.strip() if isinstance(prompt, str) else True for prompt in prompts):
            raise ValueError("no prompt: type what to look for, such as “dog”, and press Enter")
        prompts = clean_prompts(prompts)
        if len(prompts) > MAX_PROMPTS or max(map(len, prompts)) > MAX_CHARACTERS:
            raise ValueError(f"use at most {MAX_PROMPTS} prompts of {MAX_CHARACTERS} characters")
        self._check_work(len(prompts), task)
        options: dict[str, Any] = {name: thresholds[name] for name in TASK_THRESHOLDS[task]}
        things: dict[str, bool] = {}
        for prompt in prompts:
            add_prompt(things, prompt, {*COCO_STUFF, *self._predictor.cfg.DATASETS.SHAPES.TEXTURES})
        stuff = [text for text, is_thing in things.items() if not is_thing]
        self.found = self._predictor.predict(list(things), task, image=self._encoded, stuff=stuff, **options)
        self.shown, self.selected = self.found, None
        self._clicks, self._answers, self._slots = [], {}, list(range(len(self.found.masks)))

    def _check_work(self, prompts: int, task: str) -> None:
        """Raise ValueError if the masks of some prompts have too many pixels; of an expression there is one mask."""
        height, width = self.image.shape[:2]
        each = height * width * (1 if task == "referring" else self._predictor.model.adapter.num_queries)
        if (work := prompts * each) > self.max_work:
            raise ValueError(
                f"{prompts} prompts on {width} x {height} pixels take masks of {work / 1e6:,.0f} million pixels; the "
                f"limit is {self.max_work / 1e6:,.0f} (openworldsam app --max-work): ask for at most "
                f"{self.max_work // each} at once, or use a smaller image"
            )

    def pixel(self, place: Any) -> tuple[int, int]:
        """Convert a place [x, y] in `drawn()`, which may be enlarged or reduced, to x, y in the image.

        Raises:
            ValueError: it is no place there.
        """
        height, width = self.image.shape[:2]
        drawn_height, drawn_width = at_drawn_size(self.image).shape[:2]
        numbers = isinstance(place, (list, tuple)) and [isinstance(value, (int, float)) for value in place]
        if numbers != [True, True] or not (0 <= place[0] <= drawn_width and 0 <= place[1] <= drawn_height):
            raise ValueError(f"a click is a place x, y in {drawn_width} x {drawn_height} pixels, got {brief(place)}")
        x, y = place
        return min(int(x * width / drawn_width), width - 1), min(int(y * height / drawn_height), height - 1)

    def mask_at(self, x: int, y: int) -> int | None:
        """Index of the topmost shown mask at a pixel, or None."""
        return int(self.shown.label_map[y, x]) - 1 if self.shown and self.shown.label_map[y, x] else None

    def select(self, index: int | None) -> None:
        """Select a shown mask, or none."""
        self.selected = index

    def click(self, x: int, y: int, label: int) -> None:
        """Correct the selected mask, or add a new one if none is selected; arguments as in `Click`.

        Raises:
            ValueError: there is no answer yet, there are too many clicks, the first click of a new mask is negative,
                or no pixel would be left.
        """
        if self.found is None:
            raise ValueError("ask something first: clicks correct the answer")
        if len(self._clicks) >= MAX_CLICKS:
            raise ValueError(f"use at most {MAX_CLICKS} clicks: undo some, or ask again")
        if self.selected is None and not label:
            raise ValueError("select a mask first: there is nothing to remove from")
        new_slot = max(len(self.found.masks), *(slot + 1 for slot in self._answers), 0)
        slot = new_slot if self.selected is None else self._slots[self.selected]
        self._clicks.append(Click(slot, x, y, label))
        try:
            self._answer_clicks(slot)
        except ValueError:
            self._clicks.pop()
            raise
        self.selected = self._slots.index(slot)

    def undo(self) -> None:
        """Undo the last click.

        Raises:
            ValueError: there is none.
        """
        if not self._clicks:
            raise ValueError("there is no click to undo")
        slot = self._clicks.pop().slot
        self._answer_clicks(slot)
        self.selected = self._slots.index(slot) if slot in self._slots else None

    def _answer_clicks(self, slot: int) -> None:
        """Decode the mask of a slot from all its clicks, so that no undone click leaves a trace."""
        assert self.found is not None
        clicks = [click for click in self._clicks if click.slot == slot]
        if clicks:
            mask = self.found.mask_prompt(slot) if slot < len(self.found.masks) else None
            points, labels = [(c.x, c.y) for c in clicks], [c.label for c in clicks]
            answer = self._predictor.click(points, labels, mask=mask, image=self._encoded)
            if not len(answer.masks):
                raise ValueError("this click would leave no pixel of the mask")
            self._answers[slot] = answer
        else:
            del self._answers[slot]
        newest_first = dict.fromkeys(click.slot for click in reversed(self._clicks))
        self.shown, self._slots = with_clicks(self.found, {slot: self._answers[slot] for slot in newest_first})

    def drawn(self) -> np.ndarray:
        """Draw all shown masks, or the selected one and its clicks over a darkened image: uint8 [h, w, 3]."""
        shown, n = self.shown, self.selected
        if shown is None:
            return at_drawn_size(self.image)
        if n is None:
            return draw_masks(self.image, shown, scores=True)
        image = np.where(shown.masks[n][..., None], self.image, self.image // 3)
        drawn = draw_masks(image, shown, alpha=0.25, scores=True, only=n)
        clicks = [click for click in self._clicks if click.slot == self._slots[n]]
        scale = drawn.shape[1] / self.image.shape[1], drawn.shape[0] / self.image.shape[0]
        places = [((click.x + 0.5) * scale[0], (click.y + 0.5) * scale[1]) for click in clicks]
        return draw_clicks(drawn, places, [click.label for click in clicks])

    def table(self) -> list[list[str | float]]:
        """List each shown mask: number from 1, prompt, `score_columns` ("" for none), percentage of the image."""
        shown = self.shown
        if shown is None:
            return []
        rows: list[list[str | float]] = []
        for n, (prompt, mask) in enumerate(zip(shown.prompt_index.tolist(), shown.masks, strict=True)):
            scores = {name: round(score, 3) for name, score in shown.evidence(n).items()}
            row = [scores.get(name, "") for name in self._columns]
            rows.append([n + 1, shown.prompts[prompt], *row, round(100 * mask.mean(), 2)])
        return rows

    @property
    def message(self) -> str:
        """Say what to do first, what was found, or the scores of the selected mask; and the warning, if any."""
        return "\n".join(filter(None, (self._state(), self.warning)))

    def _state(self) -> str:
        shown, n = self.shown, self.selected
        if shown is None:
            return "now type what to look for"
        if n is None:
            return shown.summary
        scores = shown.evidence(n)
        words = [f"{SCORE_NAMES[name]} {scores[name]:.3f}" for name in SCORE_NAMES if name in scores]
        if len(scores) < len(self._columns):
            words.append("no match score, as clicks have no name")
        return f"mask {n + 1}: {shown.prompts[shown.prompt_index[n]]}, {', '.join(words)}"

    def archive(self, info: Mapping[str, Any]) -> bytes:
        """Pack the shown masks, and `info` about them, into a zip.

        `<name>.json`: a COCO dataset of one image, masks as RLE. `<name>_ids.png`: uint16 [H, W], annotation id per
        pixel, 0 = no mask; where masks overlap the smaller wins. `<name>_overlay.png`: image with masks and legend.

        Raises:
            ValueError: there is no answer yet.
        """
        shown, stem, archive = self.shown, Path(self.name).stem, io.BytesIO()
        if shown is None:
            raise ValueError("there are no results yet: ask something first")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(f"{stem}.json", json.dumps(shown.to_coco(self.name, info)))
            file.writestr(f"{stem}_ids.png", png_bytes(shown.label_map.astype(np.uint16)))
            file.writestr(f"{stem}_overlay.png", png_bytes(draw_prediction(self.image, shown)))
        return archive.getvalue()


def score_columns(predictor: OpenWorldSAMPredictor) -> list[str]:
    """Return which of `SCORE_NAMES` the masks of a model have."""
    return [name for name in SCORE_NAMES if name != "match" or predictor.model.score_head]


def number(value: Any, end: int, what: str, first: int = 0) -> int:
    """Check that a value from outside, a number or its digits, numbers something from `first` to `end` - 1.

    Raises:
        ValueError: it does not.
    """
    digits = re.fullmatch(r"\d{1,9}", value, re.ASCII) if isinstance(value, str) else None
    index = int(digits[0]) if digits else value
    if type(index) is not int or not first <= index < end:
        raise ValueError(f"there is no {what} {brief(value)}; there are {end - first}, from {first}")
    return index


def with_clicks(found: Prediction, answers: Mapping[int, Prediction]) -> tuple[Prediction, list[int]]:
    """Replace and add masks by the answers to clicks, one mask each, by slot, newest first.

    Slots below N are replaced, others added as "object". Where masks may not overlap an answer takes pixels from all
    other masks, and a newer answer from an older one. Returns the masks that have a pixel left, N + M at most, and
    their slots.
    """
    slots = sorted({*range(len(found.masks)), *answers})
    if not slots:
        return found, slots
    sources = [(answers[slot], 0) if slot in answers else (found, slot) for slot in slots]
    masks = np.stack([source.masks[n] for source, n in sources])
    if found.task in DISJOINT:
        taken = np.zeros_like(masks[0])
        for slot in (*answers, *(slot for slot in slots if slot not in answers)):
            mask = masks[slots.index(slot)]
            mask &= ~taken
            if slot in answers:
                taken |= mask
    scores = np.stack([source.scores[n] for source, n in sources])
    evidence = np.stack([(source.predicted_iou[n], source.match[n]) for source, n in sources])
    labels = np.array([found.prompt_index[slot] if slot < len(found.masks) else len(found.prompts) for slot in slots])
    left = masks.any(axis=(1, 2))
    thing = dict(zip(found.prompt_index.tolist(), found.is_thing.tolist(), strict=True))
    added = {answers[slot].prompts[0]: answers[slot].best_scores[0] for slot in slots[len(found.masks) :]}
    prompts = [*found.prompts, *added]
    prediction = Prediction.of(
        Found(*(torch.from_numpy(column[left]) for column in (masks, scores, labels, evidence))),
        found.task,
        prompts,
        is_thing=[thing.get(index, True) for index in range(len(prompts))],
        rule=found.rule,
        threshold=found.threshold,
        best_scores=[*found.best_scores, *added.values()],
    )
    return prediction, np.array(slots)[left].tolist()
