"""Pictures of predictions: masks, labels and a legend over a photograph, and sheets of such pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from openworldsam.visualization.legend import (
    DARK,
    INK,
    PAPER,
    WIDE,
    Color,
    PredictionLike,
    Size,
    draw_legend,
    ellipsise,
    legend_rows,
    load_font,
    mask_colors,
)

Picture = NDArray[np.uint8]  # [H, W, 3], RGB
Rect = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive

_MIN_LONG_SIDE = 448  # pictures below this are enlarged, otherwise a label would be wider than the picture
_MAX_SIDE = 1600  # larger ones are reduced
_MIN_SHORT_SIDE = 8  # thinner strips are stretched: a line of one pixel shows nothing
_REACH = 5  # how far a label may move from home, in label heights, along each axis
_CROWD = 16  # from this number of masks on labels are smaller


class Drawing(NamedTuple):
    """What drawing reads of a prediction (`PredictionLike`), for those that are none: N masks of P prompts."""

    task: str
    prompts: tuple[str, ...]
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    prompt_index: NDArray[np.int64]


@dataclass(frozen=True)
class _Layers:
    """The masks at the size they are drawn: who owns each pixel ([h, w], 0 = nobody) and their outlines."""

    owner: NDArray[np.int32]
    contours: list[list[NDArray[np.int32]]]


def draw_prediction(
    image: Picture, prediction: PredictionLike, *, alpha: float = 0.45, max_side: int = _MAX_SIDE
) -> Picture:
    """Draw masks, labels and a legend over a picture.

    The picture fills the top left corner of the result; the legend is to its right, or below it if the
    picture is wide. Where masks overlap the higher score is on top. Pictures with a longer side above
    ``max_side`` are reduced, very small ones enlarged; anything in between keeps its pixels.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        prediction: masks ``[N, H, W]``, scores and prompt indices ``[N]`` for any number of prompts.
        alpha: opacity of the fill, 0 to 1.
        max_side: longest side of the picture in pixels, without the legend; at least 64.

    Returns:
        uint8 ``[h, w, 3]``, RGB.

    Raises:
        ValueError: if a shape, type or range is not as described.
    """
    labelled = Image.fromarray(draw_masks(image, prediction, alpha=alpha, max_side=max_side, scores=True))
    return _beside(labelled, draw_legend(legend_rows(prediction), labelled.size, _text_size(labelled.size)))


def draw_masks(
    image: Picture, prediction: PredictionLike, *, alpha: float = 0.45, max_side: int = _MAX_SIDE, scores: bool = False
) -> Picture:
    """Draw masks and labels over a picture: `draw_prediction` without its legend.

    Args:
        image, prediction, alpha, max_side: as there.
        scores: whether labels have them.

    Returns:
        uint8 ``[h, w, 3]``, RGB.

    Raises:
        ValueError: if a shape, type or range is not as described.
    """
    _check_picture(image)
    _check_prediction(image, prediction)
    if not 0.0 <= alpha <= 1.0 or max_side < 64:
        raise ValueError(f"need 0 <= alpha <= 1 and max_side >= 64, got {alpha} and {max_side}")
    size = _canvas_size(image.shape[1], image.shape[0], max_side)
    colors = mask_colors(prediction)
    layers = _layers(prediction.masks, prediction.scores, size)
    canvas = _fill(_resize(image, size), layers.owner, colors, alpha)
    labelled = Image.fromarray(_outline(canvas, layers.contours, colors, prediction.scores))
    font = load_font(_text_size(size) - (0 if len(colors) < _CROWD else 2))
    _draw_labels(labelled, prediction, layers, colors, font, scores)
    return np.array(labelled)


def at_drawn_size(image: Picture) -> Picture:
    """A picture without anything over it, as large as `draw_prediction` draws it by default: uint8 ``[h, w, 3]``.

    Raises:
        ValueError: if it is not a uint8 ``[H, W, 3]`` picture.
    """
    _check_picture(image)
    return _resize(image, _canvas_size(image.shape[1], image.shape[0], _MAX_SIDE))


def contact_sheet(panels: list[tuple[str, Picture]], columns: int) -> Picture:
    """Arrange titled pictures in a grid, row by row, without resizing them.

    Args:
        panels: titles and uint8 ``[H, W, 3]`` pictures, which may differ in size; at least one.
        columns: number of columns, at least 1.

    Returns:
        uint8 ``[h, w, 3]``, RGB.

    Raises:
        ValueError: without panels or columns, or if a panel is not a uint8 ``[H, W, 3]`` picture.
    """
    if not panels or columns < 1:
        raise ValueError(f"need at least one panel and one column, got {len(panels)} and {columns}")
    for _, picture in panels:
        _check_picture(picture)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    widths = [max(p.shape[1] for _, p in panels[c::columns]) for c in range(min(columns, len(panels)))]
    heights = [max(picture.shape[0] for _, picture in row) for row in rows]
    text = int(np.clip(max(widths) / 40, 12, 32))
    gap, title = text, 2 * text
    size = sum(widths) + gap * (len(widths) + 1), sum(heights) + (title + gap) * len(rows)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), load_font(text)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for (name, picture), width in zip(row, widths, strict=False):
            draw.text((left, top + text), ellipsise(name, font, width), INK, font, anchor="lm")
            sheet.paste(Image.fromarray(picture), (left, top + title))
            left += width + gap
        top += height + title + gap
    return np.array(sheet)


def place_labels(anchors: Sequence[Size], sizes: Sequence[Size], bounds: Size) -> list[Rect | None]:
    """Place labels near their anchors, earlier ones first, without overlaps and inside the picture.

    A label is centred on its anchor if it can be, else moved by a few times its height at most to the
    nearest free place, with some preference for places that hide no other anchor.

    Args:
        anchors: x, y of the points to be labelled, in pixels inside the picture.
        sizes: width, height of the labels in pixels.
        bounds: width, height of the picture in pixels.

    Returns:
        One rectangle per label, ``None`` where no place is free.
    """
    points = np.array(anchors, dtype=np.int64).reshape(-1, 2)
    steps = np.arange(-2 * _REACH, 2 * _REACH + 1) / 2
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    taken = np.empty((0, 4), dtype=np.int64)
    rects: list[Rect | None] = []
    for point, size in zip(points, sizes, strict=True):
        room = np.array(bounds) - size
        if (room < 0).any():
            rects.append(None)
            continue
        corner = np.clip(np.rint(point - np.array(size) / 2 + grid * size[1]), 0, room).astype(np.int64)
        places = np.concatenate([corner, corner + size], axis=1)
        cost = np.hypot(*(corner + np.array(size) / 2 - point).T)
        others = points[(points != point).any(axis=1)]
        hidden = ((others >= places[:, None, :2]) & (others < places[:, None, 2:])).all(axis=-1).sum(axis=1)
        cost += 0.5 * size[1] * hidden
        apart = (places[:, None, :2] > taken[:, 2:]) | (places[:, None, 2:] < taken[:, :2])
        cost[~apart.any(axis=-1).all(axis=1)] = np.inf
        best = int(cost.argmin())
        if np.isinf(cost[best]):
            rects.append(None)
            continue
        taken = np.concatenate([taken, places[best : best + 1]])
        x0, y0, x1, y1 = places[best].tolist()
        rects.append((x0, y0, x1, y1))
    return rects


def pole_of_inaccessibility(region: NDArray[np.bool_]) -> Size:
    """Return x, y of a pixel as far as can be from the region's edge, the middlemost if several are."""
    distance = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(distance >= 0.95 * distance.max())
    best = int(np.hypot(rows - rows.mean(), columns - columns.mean()).argmin())
    return int(columns[best]), int(rows[best])


def _check_picture(image: Picture) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"need a non-empty uint8 [H, W, 3] picture, got {image.dtype} {list(image.shape)}")


def _check_prediction(image: Picture, prediction: PredictionLike) -> None:
    masks, scores, index = prediction.masks, prediction.scores, prediction.prompt_index
    if masks.dtype != np.bool_ or masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        wanted = f"bool [N, {image.shape[0]}, {image.shape[1]}]"
        raise ValueError(f"need masks {wanted} for this picture, got {masks.dtype} {list(masks.shape)}")
    if scores.shape != (len(masks),) or index.shape != (len(masks),):
        got = f"{list(scores.shape)} and {list(index.shape)}"
        raise ValueError(f"need one score and one prompt index for each of {len(masks)} masks, got {got}")
    if len(masks) and not 0 <= index.min() <= index.max() < len(prediction.prompts):
        got = f"{index.min()} to {index.max()}"
        raise ValueError(f"need prompt indices below {len(prediction.prompts)}, got {got}")


def _canvas_size(width: int, height: int, max_side: int) -> Size:
    longest = max(width, height)
    scale = min(max(longest, _MIN_LONG_SIDE), max_side) / longest
    return max(round(width * scale), _MIN_SHORT_SIDE), max(round(height * scale), _MIN_SHORT_SIDE)


def _text_size(size: Size) -> int:
    """Of the labels and the legend of a picture."""
    return int(np.clip(math.sqrt(size[0] * size[1]) / 46, 12, 26))


def _resize(picture: NDArray[np.uint8], size: Size, enlarge: int = cv2.INTER_CUBIC) -> NDArray[np.uint8]:
    """Resize [H, W] or [H, W, 3]; the very same pixels if the size is right already."""
    if picture.shape[1::-1] == size:
        return picture
    reduces = picture.shape[1] > size[0] or picture.shape[0] > size[1]
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if reduces else enlarge)
    return np.asarray(resized, np.uint8)


def _layers(masks: NDArray[np.bool_], scores: NDArray[np.float32], size: Size) -> _Layers:
    """Bring the masks to ``size`` one at a time, so that memory does not grow with their number."""
    owner = np.zeros(size[::-1], dtype=np.int32)
    contours: list[list[NDArray[np.int32]]] = [[] for _ in masks]
    for n in np.argsort(scores, kind="stable").tolist():
        mask = np.ascontiguousarray(masks[n]).view(np.uint8)
        small = _resize(mask, size, cv2.INTER_LINEAR)  # of 0 and 1, hence rounds at one half
        if mask.any() and not small.any():  # smaller than a pixel of the canvas
            y, x = (int(place[0]) for place in mask.nonzero())
            small[y * size[1] // mask.shape[0], x * size[0] // mask.shape[1]] = 1
        owner[small > 0] = n + 1
        found, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        contours[n] = [np.asarray(contour, np.int32) for contour in found]
    return _Layers(owner, contours)


def _fill(picture: Picture, owner: NDArray[np.int32], colors: Sequence[Color], alpha: float) -> Picture:
    table = np.array([(0, 0, 0), *colors], dtype=np.uint8)
    tinted = cv2.addWeighted(picture, 1.0 - alpha, table[owner], alpha, 0.0)
    return np.where(owner[..., None] > 0, tinted, picture).astype(np.uint8)


def _outline(
    canvas: Picture,
    contours: list[list[NDArray[np.int32]]],
    colors: Sequence[Color],
    scores: NDArray[np.float32],
) -> Picture:
    """Draw a light line in the mask's hue on a translucent dark one: it shows on snow and at night."""
    width = max(1, round(max(canvas.shape) / 500))
    curves = [[_smooth(contour) for contour in group] for group in contours]
    dark = canvas.copy()
    cv2.polylines(dark, [c for group in curves for c in group], True, DARK, width + 2, cv2.LINE_AA, 4)
    canvas = np.asarray(cv2.addWeighted(canvas, 0.4, dark, 0.6, 0.0), np.uint8)
    for n in np.argsort(scores, kind="stable").tolist():
        light = tuple((channel + 255) // 2 for channel in colors[n])
        cv2.polylines(canvas, curves[n], True, light, width, cv2.LINE_AA, 4)
    return canvas


def _smooth(contour: NDArray[np.int32]) -> NDArray[np.int32]:
    """Average [L, 1, 2] pixel steps over five neighbours; the result counts sixteenths of a pixel."""
    if len(contour) < 12:
        return contour * 16
    mean = sum(np.roll(contour, shift, axis=0).astype(np.float64) for shift in range(-2, 3))
    return np.rint(mean * (16 / 5)).astype(np.int32)


def _draw_labels(
    picture: Image.Image,
    prediction: PredictionLike,
    layers: _Layers,
    colors: Sequence[Color],
    font: ImageFont.FreeTypeFont,
    scores: bool,
) -> None:
    """Label the visible part of each mask; large masks come first, as they have most room at home."""
    areas = np.bincount(layers.owner.ravel(), minlength=len(colors) + 1)[1:]
    order = [n for n in np.argsort(-areas, kind="stable").tolist() if areas[n] > 0]
    names, anchors, sizes = [], [], []
    for n in order:
        x, y, width, height = cv2.boundingRect(np.concatenate(layers.contours[n]))
        column, row = pole_of_inaccessibility(layers.owner[y : y + height, x : x + width] == n + 1)
        anchors.append((x + column, y + row))
        prompt = ellipsise(prediction.prompts[prediction.prompt_index[n]], font, 10 * font.size)
        names.append(f"{prompt} {prediction.scores[n]:.2f}".strip() if scores else prompt)
        sizes.append((round(font.getlength(names[-1]) + 0.7 * font.size), round(1.4 * font.size)))
    rects = place_labels(anchors, sizes, picture.size)
    draw = ImageDraw.Draw(picture)
    placed = [(n, name, *at, *r) for n, name, at, r in zip(order, names, anchors, rects, strict=True) if r]
    for n, _, x, y, x0, y0, x1, y1 in placed:
        if not (x0 <= x < x1 and y0 <= y < y1):
            end = min(max(x, x0), x1 - 1), min(max(y, y0), y1 - 1)
            draw.line([(x, y), end], DARK, 3)
            draw.line([(x, y), end], colors[n], 1)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colors[n], DARK)
    for n, name, _, _, x0, y0, x1, y1 in placed:
        draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), font.size // 4, colors[n], DARK)
        draw.text(((x0 + x1) / 2, (y0 + y1) / 2), name, _readable_on(colors[n]), font, anchor="mm")


def _beside(picture: Image.Image, panel: Image.Image) -> Picture:
    corner = (0, picture.height) if picture.width > WIDE * picture.height else (picture.width, 0)
    whole = max(corner[0] + panel.width, picture.width), max(corner[1] + panel.height, picture.height)
    sheet = Image.new("RGB", whole, PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(panel, corner)
    return np.array(sheet)


def _readable_on(color: Color) -> Color:
    return INK if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 130 else (255, 255, 255)
