"""Colours and legend for drawings of predictions."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from openworldsam.utils.text import not_found
from openworldsam.visualization.text import display_names, draw_text, text_width

if TYPE_CHECKING:
    from openworldsam.predictor import Prediction

Color = tuple[int, int, int]
Size = tuple[int, int]  # width, height in pixels

# Okabe & Ito's colour-blind-safe palette without black, which would be invisible as a tint. The two closest
# colours, orange and vermilion, are far apart in the order, so that few prompts rarely get both.
_OKABE_ITO: tuple[Color, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167),
    (240, 228, 66), (0, 114, 178), (213, 94, 0),
)  # fmt: skip
WIDE = 1.5  # aspect ratio above which the legend goes below the image
PAPER, INK, GREY, DARK = (250, 250, 250), (30, 30, 30), (140, 140, 140), (16, 16, 16)


class LabelledMasks(NamedTuple):
    """N masks of P prompts: the part of a `Prediction` that is drawn; best_scores is None where nobody looked for the
    prompts, as in ground truth."""

    task: str
    prompts: tuple[str, ...]
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    prompt_index: NDArray[np.int64]
    best_scores: NDArray[np.float32] | None = None
    threshold: float = 0.0


Drawable: TypeAlias = "LabelledMasks | Prediction"


@dataclass(frozen=True)
class LegendRow:
    """One prompt in the legend: the number of its masks, and its best score in words."""

    prompt: str
    shades: tuple[Color, ...]
    count: int
    summary: str


def prompt_colors(count: int) -> list[Color]:
    """Return distinct colours: Okabe-Ito's, then hues a golden ratio apart at three lightnesses."""
    further = (
        _to_color(colorsys.hls_to_rgb(index * 0.618034 % 1.0, (0.4, 0.55, 0.7)[index % 3], 0.75))
        for index in range(len(_OKABE_ITO), count)
    )
    return [*_OKABE_ITO[:count], *further]


def mask_colors(prediction: Drawable) -> list[Color]:
    """Return one colour per mask: that of its prompt, varied per instance for instance and panoptic, largest first."""
    base = prompt_colors(len(prediction.prompts))
    # the instances of a lone prompt may vary more, as there is no other prompt to confuse them with
    hue_spread = 0.16 if len(base) > 1 else 0.35
    seen = [0] * len(base)
    colors = [(0, 0, 0)] * len(prediction.masks)
    for n in np.argsort(-prediction.masks.sum(axis=(1, 2)), kind="stable").tolist():
        prompt = int(prediction.prompt_index[n])
        colors[n] = _shade(base[prompt], seen[prompt], hue_spread)
        seen[prompt] += prediction.task in ("instance", "panoptic")
    return colors


def fill_color(color: Color) -> Color:
    """Return the lighter colour that fills what a colour outlines."""
    red, green, blue = ((3 * channel + 255) // 4 for channel in color)
    return red, green, blue


def _shade(color: Color, instance: int, hue_spread: float) -> Color:
    """Alternate between three lightnesses, and vary the hue along a low-discrepancy sequence."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    hue += hue_spread * ((instance * 0.754878 + 0.5) % 1.0 - 0.5)
    step = (0.0, 0.36, -0.2)[instance % 3]
    lightness += step if 0.2 <= lightness + step <= 0.85 else -step
    return _to_color(colorsys.hls_to_rgb(hue % 1.0, min(max(lightness, 0.2), 0.88), saturation))


def _to_color(rgb: Sequence[float]) -> Color:
    red, green, blue = (round(255 * channel) for channel in rgb)
    return red, green, blue


def legend_rows(prediction: Drawable) -> list[LegendRow]:
    """Return one row per prompt, in the order given."""
    colors, bases = mask_colors(prediction), prompt_colors(len(prediction.prompts))
    rows = []
    for index, (prompt, base) in enumerate(zip(prediction.prompts, bases, strict=True)):
        masks = np.flatnonzero(prediction.prompt_index == index).tolist()
        shades = tuple(dict.fromkeys(colors[n] for n in masks[:4])) or (base,)
        if masks:
            best = prediction.scores[masks].max()
            summary = f"1 mask, {best:.2f}" if len(masks) == 1 else f"{len(masks)} masks, best {best:.2f}"
        elif prediction.best_scores is None:
            summary = "no mask"
        else:
            summary = not_found(float(prediction.best_scores[index]), prediction.threshold)
        rows.append(LegendRow(prompt, shades, len(masks), summary))
    return rows


def with_all_prompts(predictions: Sequence[Drawable]) -> list[LabelledMasks]:
    """Give predictions the prompts of all of them, so that equal prompts get equal colours."""
    prompts = tuple(dict.fromkeys(prompt for each in predictions for prompt in each.prompts))
    drawings = []
    for each in predictions:
        index = np.array([prompts.index(prompt) for prompt in each.prompts], dtype=np.int64)
        best = None if each.best_scores is None else np.zeros(len(prompts), np.float32)
        if best is not None:
            best[index] = each.best_scores
        masks = each.masks, each.scores, index[each.prompt_index]
        drawings.append(LabelledMasks(each.task, prompts, *masks, best, each.threshold))
    return drawings


def comparison_legend(predictions: Sequence[Drawable]) -> list[LegendRow]:
    """Return one row per prompt of any prediction: that of the most masks; the summary only says what none found."""
    rows: dict[str, LegendRow] = {}
    for each, drawing in zip(predictions, with_all_prompts(predictions), strict=True):
        for row in legend_rows(drawing):
            if row.prompt in each.prompts and row.count >= rows.get(row.prompt, row).count:
                rows[row.prompt] = replace(row, summary="" if row.count else row.summary)
    return list(rows.values())


def draw_legend(rows: list[LegendRow], size: Size, text: int) -> Image.Image:
    """Draw the legend for an image of `size`: as high as an image beside it, as wide as an image above it."""
    pad, line = text, round(1.7 * text)
    width, height = size
    below = width > WIDE * height
    lines = max(4, height // (2 * line)) if below else max(1, (height - 2 * pad) // line)
    room = width if below else int(0.7 * width)
    stats = max((text_width(row.summary, text) for row in rows), default=0.0)
    longest = max(20 * text, room - stats - 6 * text if len(rows) <= lines else 0)
    names = display_names([row.prompt for row in rows], range(len(rows)), text, longest)
    column = round(max((text_width(name, text) for name in names), default=0.0) + stats) + 6 * text
    if below:
        columns = max(1, width // column)
        lines = max(1, min(math.ceil(len(rows) / columns), lines))
        height = lines * line + 2 * pad
        width = max(width, columns * column)
    else:
        columns = max(1, min(math.ceil(len(rows) / lines), room // column))
        width = columns * column
    shown = list(range(len(rows)))
    if len(rows) > lines * columns:  # prompts with masks come first; the last place counts the omitted ones
        shown = sorted(shown, key=lambda index: rows[index].count == 0)[: lines * columns - 1]
    panel = Image.new("RGB", (width, height), PAPER)
    places = [(pad + i // lines * column, pad + i % lines * line + line // 2) for i in range(lines * columns)]
    for index, place in zip(shown, places, strict=False):
        _draw_row(panel, rows[index], names[index], place, column - 2 * pad, text)
    if len(shown) < len(rows):
        draw_text(panel, places[-1], f"... and {len(rows) - len(shown)} more", GREY, text)
    return panel


def _draw_row(panel: Image.Image, row: LegendRow, name: str, place: Size, width: int, text: int) -> None:
    """Draw a swatch of the prompt's first shades, its text and, flush right, its summary."""
    x, y = place
    half, end, draw = text / 2, x + 1.8 * text, ImageDraw.Draw(panel)
    step = (end - x) / len(row.shades)
    for i, shade in enumerate(row.shades if row.count else ()):
        draw.rectangle((x + i * step, y - half, x + (i + 1) * step - 1, y + half), fill_color(shade), shade, 2)
    if not row.count:
        draw.rectangle((x, y - half, end, y + half), None, GREY)
    draw_text(panel, (end + half, y), name, INK if row.count else GREY, text)
    draw_text(panel, (x + width, y), row.summary, GREY, text, "r")
