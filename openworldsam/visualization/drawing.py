"""Draw predictions: masks, labels and a legend over an image, and contact sheets of such drawings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from openworldsam.visualization.legend import (
    DARK,
    INK,
    PAPER,
    WIDE,
    Color,
    Drawable,
    Size,
    draw_legend,
    legend_rows,
    mask_colors,
)
from openworldsam.visualization.text import display_names, draw_text, fitted, text_width

RGBImage = NDArray[np.uint8]  # [H, W, 3]
Rect = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive

_MIN_LONG_SIDE = 448  # smaller images are enlarged, otherwise a label would be wider than the image
_MAX_SIDE = 1600  # larger images are reduced
_MIN_SHORT_SIDE = 8  # thinner strips are stretched: a line of one pixel shows nothing
_REACH = 5  # how far a label may move from its anchor, in label heights, along each axis
_CROWD = 16  # number of masks from which labels are smaller


class _CanvasMasks(NamedTuple):
    """Masks at the size they are drawn: number of the topmost mask per pixel [h, w] (0 = none), and their outlines."""

    owner: NDArray[np.int32]
    contours: list[list[NDArray[np.int32]]]


def draw_prediction(
    image: RGBImage, prediction: Drawable, *, alpha: float = 0.45, max_side: int = _MAX_SIDE
) -> RGBImage:
    """Draw masks, labels and a legend over an image: uint8 [h, w, 3], RGB.

    The image fills the top left corner; the legend is right of it, or below if the image is wide. Where masks overlap
    the higher score is on top. Images with a longer side above `max_side` are reduced, very small ones enlarged;
    anything in between keeps its pixels.

    Args:
        image: uint8 [H, W, 3], RGB.
        prediction: masks [N, H, W], scores and prompt indices [N] for any number of prompts.
        alpha: opacity of the fill, 0 to 1.
        max_side: longest side of the image in pixels, without the legend; at least 64.

    Raises:
        ValueError: if a shape, type or range is not as described.
    """
    drawn = Image.fromarray(draw_masks(image, prediction, alpha=alpha, max_side=max_side, scores=True))
    legend = draw_legend(legend_rows(prediction), drawn.size, _text_size(drawn.size))
    corner = (0, drawn.height) if drawn.width > WIDE * drawn.height else (drawn.width, 0)
    size = max(corner[0] + legend.width, drawn.width), max(corner[1] + legend.height, drawn.height)
    whole = Image.new("RGB", size, PAPER)
    whole.paste(drawn, (0, 0))
    whole.paste(legend, corner)
    return np.array(whole)


def draw_masks(
    image: RGBImage, prediction: Drawable, *, alpha: float = 0.45, max_side: int = _MAX_SIDE, scores: bool = False
) -> RGBImage:
    """Draw masks and labels over an image: `draw_prediction` without the legend.

    Args:
        image, prediction, alpha, max_side: see `draw_prediction`, like result and errors.
        scores: add the score to each label.
    """
    _check_image(image)
    _check_prediction(image, prediction)
    if not 0.0 <= alpha <= 1.0 or max_side < 64:
        raise ValueError(f"need 0 <= alpha <= 1 and max_side >= 64, got {alpha} and {max_side}")
    size = _canvas_size(image.shape[1], image.shape[0], max_side)
    colors = mask_colors(prediction)
    masks = _to_canvas(prediction.masks, prediction.scores, size)
    resized = _resize(image, size)
    fill = np.array([(0, 0, 0), *colors], dtype=np.uint8)[masks.owner]
    tinted = cv2.addWeighted(resized, 1.0 - alpha, fill, alpha, 0.0)
    canvas = np.where(masks.owner[..., None] > 0, tinted, resized).astype(np.uint8)
    outlined = Image.fromarray(_outline(canvas, masks.contours, colors, prediction.scores))
    text = _text_size(size) - (0 if len(colors) < _CROWD else 2)
    _draw_labels(outlined, prediction, masks, colors, text, scores)
    return np.array(outlined)


def at_drawn_size(image: RGBImage) -> RGBImage:
    """Resize an image as `draw_prediction` does by default, and draw nothing over it: uint8 [h, w, 3].

    Raises:
        ValueError: if it is not a uint8 [H, W, 3] image.
    """
    _check_image(image)
    return _resize(image, _canvas_size(image.shape[1], image.shape[0], _MAX_SIDE))


def contact_sheet(panels: list[tuple[str, RGBImage]], columns: int) -> RGBImage:
    """Arrange titled images, uint8 [H, W, 3] of any sizes, row by row in a grid: uint8 [h, w, 3].

    Raises:
        ValueError: without panels or columns, or if a panel is not a uint8 [H, W, 3] image.
    """
    if not panels or columns < 1:
        raise ValueError(f"need at least one panel and one column, got {len(panels)} and {columns}")
    for _, image in panels:
        _check_image(image)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    widths = [max(image.shape[1] for _, image in panels[c::columns]) for c in range(min(columns, len(panels)))]
    heights = [max(image.shape[0] for _, image in row) for row in rows]
    text = int(np.clip(max(widths) / 40, 12, 32))
    gap, title = text, 2 * text
    size = sum(widths) + gap * (len(widths) + 1), sum(heights) + (title + gap) * len(rows)
    sheet = Image.new("RGB", size, PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for (name, image), width in zip(row, widths, strict=False):
            draw_text(sheet, (left, top + text), fitted(name, text, width), INK, text)
            sheet.paste(Image.fromarray(image), (left, top + title))
            left += width + gap
        top += height + title + gap
    return np.array(sheet)


def place_labels(anchors: Sequence[Size], sizes: Sequence[Size], bounds: Size) -> list[Rect | None]:
    """Place labels near their anchors, earlier ones first, without overlaps and inside the image; None: no free place.

    A label is centred on its anchor if that place is free; otherwise it moves to the nearest free place within
    `_REACH`, preferably one that hides no other anchor.

    Args:
        anchors: x, y of the points to label, in pixels inside the image.
        sizes, bounds: width, height of the labels and of the image in pixels.
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
    """Return x, y of the pixel farthest from the region's edge; of several the most central one."""
    distance = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(distance >= 0.95 * distance.max())
    best = int(np.hypot(rows - rows.mean(), columns - columns.mean()).argmin())
    return int(columns[best]), int(rows[best])


def _check_image(image: RGBImage) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"need a non-empty uint8 [H, W, 3] image, got {image.dtype} {list(image.shape)}")


def _check_prediction(image: RGBImage, prediction: Drawable) -> None:
    masks, scores, index = prediction.masks, prediction.scores, prediction.prompt_index
    if masks.dtype != np.bool_ or masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        wanted = f"bool [N, {image.shape[0]}, {image.shape[1]}]"
        raise ValueError(f"need masks {wanted} for this image, got {masks.dtype} {list(masks.shape)}")
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
    """Font size of labels and legend for an image of width, height."""
    return int(np.clip(math.sqrt(size[0] * size[1]) / 46, 12, 26))


def _resize(image: NDArray[np.uint8], size: Size, enlarge: int = cv2.INTER_CUBIC) -> NDArray[np.uint8]:
    """Resize [H, W] or [H, W, 3]; pixels stay unchanged if the size is right already."""
    if image.shape[1::-1] == size:
        return image
    reduces = image.shape[1] > size[0] or image.shape[0] > size[1]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if reduces else enlarge), np.uint8)


def _to_canvas(masks: NDArray[np.bool_], scores: NDArray[np.float32], size: Size) -> _CanvasMasks:
    """Resize masks [N, H, W] one at a time, so that memory does not grow with their number."""
    owner = np.zeros(size[::-1], dtype=np.int32)
    contours: list[list[NDArray[np.int32]]] = [[] for _ in masks]
    for n in np.argsort(scores, kind="stable").tolist():
        mask = np.ascontiguousarray(masks[n]).view(np.uint8)
        small = _resize(mask, size, cv2.INTER_LINEAR)  # values 0 and 1, so resizing rounds at one half
        if mask.any() and not small.any():  # smaller than a pixel of the canvas
            y, x = (int(place[0]) for place in mask.nonzero())
            small[y * size[1] // mask.shape[0], x * size[0] // mask.shape[1]] = 1
        owner[small > 0] = n + 1
        found, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        contours[n] = [np.asarray(contour, np.int32) for contour in found]
    return _CanvasMasks(owner, contours)


def _outline(
    canvas: RGBImage, contours: list[list[NDArray[np.int32]]], colors: Sequence[Color], scores: NDArray[np.float32]
) -> RGBImage:
    """Draw a light line in the mask's hue over a translucent dark one, to be seen on snow and at night."""
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
    """Average contour points [L, 1, 2] over five neighbours; the result is in 1/16 pixel."""
    if len(contour) < 12:
        return contour * 16
    mean = sum(np.roll(contour, shift, axis=0).astype(np.float64) for shift in range(-2, 3))
    return np.rint(mean * (16 / 5)).astype(np.int32)


def _draw_labels(
    canvas: Image.Image,
    prediction: Drawable,
    masks: _CanvasMasks,
    colors: Sequence[Color],
    text: int,
    scores: bool,
) -> None:
    """Label the visible part of each mask; large masks come first, as their labels need not move."""
    areas = np.bincount(masks.owner.ravel(), minlength=len(colors) + 1)[1:]
    order = [n for n in np.argsort(-areas, kind="stable").tolist() if areas[n] > 0]
    index = prediction.prompt_index[order].tolist()
    prompts = dict(zip(index, display_names(prediction.prompts, index, text, 10 * text), strict=True))
    names, anchors, sizes = [], [], []
    for n in order:
        x, y, width, height = cv2.boundingRect(np.concatenate(masks.contours[n]))
        column, row = pole_of_inaccessibility(masks.owner[y : y + height, x : x + width] == n + 1)
        anchors.append((x + column, y + row))
        prompt = prompts[int(prediction.prompt_index[n])]
        names.append(f"{prompt} {prediction.scores[n]:.2f}".strip() if scores else prompt)
        sizes.append((round(text_width(names[-1], text) + 0.7 * text), round(1.4 * text)))
    rects = place_labels(anchors, sizes, canvas.size)
    draw = ImageDraw.Draw(canvas)
    placed = [(n, name, *at, *r) for n, name, at, r in zip(order, names, anchors, rects, strict=True) if r]
    for n, _, x, y, x0, y0, x1, y1 in placed:
        if not (x0 <= x < x1 and y0 <= y < y1):
            end = min(max(x, x0), x1 - 1), min(max(y, y0), y1 - 1)
            draw.line([(x, y), end], DARK, 3)
            draw.line([(x, y), end], colors[n], 1)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colors[n], DARK)
    for n, name, _, _, x0, y0, x1, y1 in placed:
        draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), text // 4, colors[n], DARK)
        luma = 0.299 * colors[n][0] + 0.587 * colors[n][1] + 0.114 * colors[n][2]
        ink = INK if luma > 130 else (255, 255, 255)
        draw_text(canvas, ((x0 + x1) / 2, (y0 + y1) / 2), name, ink, text, "m")
