"""The predictor's result.

Shapes: P prompts, N masks found, H, W size of the image, h = w = 4S side of the mask decoder's masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from openworldsam.data.preprocessing import ImageLike, read_image
from openworldsam.inference import SCORES, Found
from openworldsam.inference.nms import layer_order, mask_boxes
from openworldsam.predictor.export import to_coco, to_detectron2, to_fiftyone, to_supervision
from openworldsam.utils.files import save_atomically
from openworldsam.utils.text import brief, not_found, rounded_down
from openworldsam.visualization import draw_masks, draw_prediction

LISTED = 20
"""Up to this many prompts, a summary lists those without a mask too."""


class Segment(NamedTuple):
    """One mask of a `Prediction`.

    mask: bool [H, W].
    box: float32 [4], x0 y0 x1 y1 in pixels, right and bottom exclusive.
    score: 0..1.
    prompt: what it was found by.
    """

    mask: np.ndarray
    box: np.ndarray
    score: float
    prompt: str


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The N masks found in an image of H x W pixels; iterating over it gives a `Segment` for each.

    task: "semantic", "instance", "panoptic", "referring", or "interactive" (clicks).
    prompts: the P texts, trimmed and each once; ("object",) for clicks that no text goes with.
    masks: bool [N, H, W]; disjoint for semantic and panoptic.
    rule: of `SCORES`, makes the scores (MODEL.INFERENCE.SCORE); "iou" for clicks, which have no name to match.
    scores: float32 [N] in 0..1, of the best query for semantic.
    predicted_iou: float32 [N], SAM2's own score, which knows no name.
    match: float32 [N], the score head's: how well the mask fits its prompt; NaN without one.
    boxes: float32 [N, 4], x0 y0 x1 y1 in pixels, right and bottom exclusive.
    prompt_index: int64 [N], index of the prompt of each mask.
    is_thing: bool [N]; False where the prompt names stuff.
    label_map: int32 [H, W], 0 where there is no mask, n + 1 for masks[n]; where masks overlap the smaller wins.
    threshold: smallest score of a mask; 0 without one.
    best_scores: float32 [P], highest score of any query of a prompt, found or not.
    logits: float32 [N, h, w] within -32..32 as in SAM2, the masks as the decoder gave them, for `click`; None for
        semantic and panoptic, where a mask is not a single query's, and where they were not kept.
    image: uint8 [H, W, 3], RGB; None where it was not kept.
    path: of the image file; None without one.
    times: milliseconds by stage, if asked for; stages whose results were there already are left out.
    """

    task: str
    prompts: tuple[str, ...]
    rule: str
    masks: np.ndarray
    scores: np.ndarray
    predicted_iou: np.ndarray
    match: np.ndarray
    boxes: np.ndarray
    prompt_index: np.ndarray
    is_thing: np.ndarray
    label_map: np.ndarray
    threshold: float
    best_scores: np.ndarray
    logits: np.ndarray | None
    image: np.ndarray | None
    path: str | None
    times: Mapping[str, float]

    @classmethod
    def of(
        cls,
        found: Found,
        task: str,
        prompts: Sequence[str],
        *,
        is_thing: Sequence[bool],
        rule: str,
        threshold: float,
        best_scores: ArrayLike,
        image: np.ndarray | None = None,
        path: str | None = None,
        times: Mapping[str, float] | None = None,
    ) -> Prediction:
        """Convert what a task found, labelled by prompt, to NumPy; is_thing is that of the P prompts."""
        masks, scores, labels, evidence = (part.numpy() for part in found[:4])
        label_map = np.zeros(masks.shape[1:], dtype=np.int32)
        for index in layer_order(masks, scores):
            label_map[masks[index]] = index + 1
        return cls(
            task=task,
            prompts=tuple(prompts),
            rule=rule,
            masks=masks,
            scores=scores,
            predicted_iou=evidence[:, 0],
            match=evidence[:, 1],
            boxes=mask_boxes(found.masks).numpy(),
            prompt_index=labels,
            is_thing=np.array(is_thing, dtype=bool)[labels],
            label_map=label_map,
            threshold=threshold,
            best_scores=np.array(best_scores, dtype=np.float32),
            logits=None if found.logits is None else found.logits.float().clamp(-32, 32).cpu().numpy(),
            image=image,
            path=path,
            times={} if times is None else times,
        )

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, n: int) -> Segment:
        prompt = self.prompts[self.prompt_index[n]]
        return Segment(self.masks[n], self.boxes[n], float(self.scores[n]), prompt)

    def __iter__(self) -> Iterator[Segment]:
        return (self[n] for n in range(len(self)))

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        return f"<Prediction {self.task}, {width} x {height} pixels: {self.summary}>"

    to_coco = to_coco
    to_detectron2 = to_detectron2
    to_fiftyone = to_fiftyone
    to_supervision = to_supervision

    def plot(self, *, legend: bool = True, alpha: float = 0.45, image: ImageLike | None = None) -> Image.Image:
        """Draw masks and names over the image; see `draw_prediction`.

        Args:
            legend: also list the prompts, beside or below the image.
            alpha: opacity of the fill, 0 to 1.
            image: another image of this size, or the image where it was not kept.

        Raises:
            ValueError: no image, or one of another size.
        """
        pixels = self.image if image is None else read_image(image)
        if pixels is None:
            raise ValueError("this result does not hold its image: give it, plot(image=...)")
        draw = draw_prediction if legend else draw_masks
        return Image.fromarray(draw(np.ascontiguousarray(pixels), self, alpha=alpha))

    def save(self, path: str | Path) -> None:
        """Write `plot()` to an image file, whose suffix says the format, such as ".png" or ".jpg".

        Raises:
            ValueError: the suffix is that of no format that can be written, or there is no image.
            OSError: it cannot be written.
        """
        kind = Image.registered_extensions().get(Path(path).suffix.lower())
        if kind not in Image.SAVE:
            raise ValueError(f"{brief(str(path))} must end in the suffix of an image file, such as .png")
        picture = self.plot()
        save_atomically(Path(path), lambda partial: picture.save(partial, format=kind))

    def show(self) -> None:
        """Open `plot()` in the system's image viewer; in a notebook, `plot()` shows itself."""
        self.plot().show()

    def mask_prompt(self, n: int) -> np.ndarray:
        """Return mask n as an argument of `click`: its logits if they were kept, otherwise its pixels."""
        return self.masks[n] if self.logits is None else self.logits[n]

    def evidence(self, n: int) -> dict[str, float]:
        """Return predicted IoU and match score of mask n by name; without a match score it is left out."""
        found = {"predicted_iou": float(self.predicted_iou[n]), "match": float(self.match[n])}
        return {name: value for name, value in found.items() if not np.isnan(value)}

    @property
    def best_score(self) -> float:
        """Highest score of any query, found or not; 0 without prompts."""
        return float(self.best_scores.max(initial=0.0))

    @property
    def not_found(self) -> dict[str, float]:
        """Best score of each prompt without a mask; above the threshold if other masks cover it."""
        found, best = set(self.prompt_index.tolist()), self.best_scores.tolist()
        return {self.prompts[i]: best[i] for i in range(len(self.prompts)) if i not in found}

    @property
    def summary(self) -> str:
        """Counts in a line, such as "zebra 3, grass not found (best 0.12)", or why nothing was found.

        More than `LISTED` prompts: only those with a mask are named.
        """
        if not self.prompts:
            return "nothing was asked for"
        if not len(self.masks):
            return why_nothing(self.task, self.threshold, self.best_score, self.rule)
        counts, best = Counter(self.prompt_index.tolist()), self.best_scores.tolist()
        listed = [i for i in range(len(self.prompts)) if counts[i] or len(self.prompts) <= LISTED]
        words = [f"{self.prompts[i]} {counts[i] or not_found(best[i], self.threshold)}" for i in listed]
        more = len(self.prompts) - len(listed)
        return ", ".join([*words, *([f"{more} not found"] if more else [])])


def why_nothing(task: str, threshold: float, best_score: float, rule: str) -> str:
    """Explain in words why a prediction, or the best of several, has no mask; `rule` is of `SCORES`."""
    best = f"best {SCORES[rule]} {rounded_down(best_score)}"
    if best_score > threshold if task == "panoptic" else best_score >= threshold:
        return f"no mask has a pixel ({best})"
    return f"no mask passed the threshold {threshold:g} ({best})"
