"""Draw predictions: masks, labels and a legend over an image, and contact sheets of such drawings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from openworldsam.inference.nms import layer_order
from openworldsam.visualization.legend import (
    DARK,
    INK,
    PAPER,
    WIDE,
    Color,
    Drawable,
    Size,
    comparison_legend,
    draw_legend,
    fill_color,
    legend_rows,
    mask_colors,
    with_all_prompts,
)
from openworldsam.visualization.text import display_names, draw_text, fitted, text_width

RGBImage = NDArray[np.uint8]  # [H, W, 3]
Rect = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive

_MIN_LONG_SIDE = 448  # smaller images are enlarged, otherwise a label would be wider than the image
_MAX_SIDE = 1600  # larger images are reduced
_MIN_SHORT_SIDE = 8  # thinner strips are stretched: a line of one pixel shows nothing
_REACH = 5  # how far a label may move from its anchor, in label heights, along each axis
_ADDS, _REMOVES = (0, 130, 60), (200, 30, 30)  # colours of clicks
_CROWD = 16  # number of masks from which labels are smaller


def draw_prediction(
    image: RGBImage, prediction: Drawable, *, alpha: float = 0.45, max_side: int = _MAX_SIDE
) -> RGBImage:
    """Draw masks, labels and a legend over an image: uint8 [h, w, 3], RGB.

    The image fills the top left corner; the legend is right of it, or below if the image is wide. Where masks overlap
    the smaller one is on top. A mask has a light fill and an outline in the colour of its label and legend. Images with
    a longer side above `max_side` are reduced, very small ones enlarged; anything in between keeps its pixels.

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
    image: RGBImage,
    prediction: Drawable,
    *,
    alpha: float = 0.45,
    max_side: int = _MAX_SIDE,
    scores: bool = False,
    only: int | None = None,
) -> RGBImage:
    """Draw masks and labels over an image: `draw_prediction` without the legend.

    Args:
        image, prediction, alpha, max_side: see `draw_prediction`, like result and errors.
        scores: add the score to each label.
        only: index of the one mask to draw, in the same colour as with the others.
    """
    _check_image(image)
    _check_prediction(image, prediction)
    if not 0.0 <= alpha <= 1.0 or max_side < 64:
        raise ValueError(f"need 0 <= alpha <= 1 and max_side >= 64, got {alpha} and {max_side}")
    size = _canvas_size(image.shape[1], image.shape[0], max_side)
    order = layer_order(prediction.masks, prediction.scores).tolist() if only is None else [only]
    by_mask = mask_colors(prediction)
    colors = [by_mask[n] for n in order]
    layers = _to_canvas((prediction.masks[n] for n in order), size)
    canvas = _resize(image, size)
    tinted = cv2.addWeighted(canvas, 1.0 - alpha, _palette(map(fill_color, colors))[layers], alpha, 0.0)
    canvas = np.where(layers[..., None] > 0, tinted, canvas).astype(np.uint8)
    outlined = Image.fromarray(_outline(canvas, layers, colors))
    text = _text_size(size) - (0 if len(colors) < _CROWD else 2)
    _draw_labels(outlined, layers, colors, _label_forms(prediction, order, text, size[0], scores), text)
    return np.array(outlined)


def draw_comparison(image: RGBImage, name: str, predictions: Mapping[str, Drawable]) -> RGBImage:
    """Draw an image and, by title, several predictions for it side by side, with one legend: uint8 [h, w, 3].

    Args:
        image: see `draw_prediction`, like errors.
        name: title of the image.
        predictions: of any tasks and prompts; equal prompts have equal colours.
    """
    shown = list(predictions.values())
    drawings = [at_drawn_size(image), *(draw_masks(image, each, scores=True) for each in with_all_prompts(shown))]
    size = drawings[0].shape[1], drawings[0].shape[0]
    drawings.append(np.array(draw_legend(comparison_legend(shown), size, _text_size(size))))
    panels = list(zip([name, *predictions, ""], drawings, strict=True))
    return contact_sheet(panels, next(columns for columns in (3, 2, len(panels)) if len(panels) % columns == 0))


def draw_clicks(drawn: RGBImage, places: Sequence[tuple[float, float]], labels: Sequence[int]) -> RGBImage:
    """Mark clicks at places x, y in a drawing, uint8 [h, w, 3]: a green plus for label 1, a red minus for 0."""
    marked = Image.fromarray(drawn)
    draw, radius = ImageDraw.Draw(marked), max(7, max(drawn.shape) // 110)
    for (x, y), label in zip(places, labels, strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), _ADDS if label else _REMOVES, (255, 255, 255), 2)
        draw.line((x - radius / 2, y, x + radius / 2, y), (255, 255, 255), 2)
        if label:
            draw.line((x, y - radius / 2, x, y + radius / 2), (255, 255, 255), 2)
    return np.array(marked)


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


def place_labels(anchors: Sequence[Size], sizes: Sequence[Sequence[Size]], bounds: Size) -> list[Rect | None]:
    """Place labels near their anchors, earlier ones first, without overlaps and inside the image; None: no free place.

    A label is centred on its anchor if that place is free; otherwise it moves to the nearest free place within
    `_REACH`, preferably one that hides no other anchor. The first of its sizes that has a free place counts.

    Args:
        anchors: x, y of the points to label, in pixels inside the image.
        sizes: width, height of each label in pixels, in full and shortened.
        bounds: width, height of the image.
    """
    points = np.array(anchors, dtype=np.int64).reshape(-1, 2)
    taken = np.empty((0, 4), dtype=np.int64)
    rects: list[Rect | None] = []
    for point, forms in zip(points, sizes, strict=True):
        free = (place for size in forms if (place := _free_place(point, size, points, taken, bounds)) is not None)
        if (place := next(free, None)) is not None:
            taken = np.concatenate([taken, place[None]])
        rects.append(None if place is None else tuple(place.tolist()))
    return rects


def _free_place(
    point: NDArray[np.int64], size: Size, points: NDArray[np.int64], taken: NDArray[np.int64], bounds: Size
) -> NDArray[np.int64] | None:
    """Find the best free place [x0, y0, x1, y1] of a label; see `place_labels`."""
    room = np.array(bounds) - size
    if (room < 0).any():
        return None
    steps = np.arange(-2 * _REACH, 2 * _REACH + 1) / 2
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    corner = np.clip(np.rint(point - np.array(size) / 2 + grid * size[1]), 0, room).astype(np.int64)
    places = np.concatenate([corner, corner + size], axis=1)
    cost = np.hypot(*(corner + np.array(size) / 2 - point).T)
    others = points[(points != point).any(axis=1)]
    hidden = ((others >= places[:, None, :2]) & (others < places[:, None, 2:])).all(axis=-1).sum(axis=1)
    cost += 0.5 * size[1] * hidden
    apart = (places[:, None, :2] > taken[:, 2:]) | (places[:, None, 2:] < taken[:, :2])
    cost[~apart.any(axis=-1).all(axis=1)] = np.inf
    best = int(cost.argmin())
    return None if np.isinf(cost[best]) else places[best]


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


def _palette(colors: Iterable[Color]) -> NDArray[np.uint8]:
    """Colours by layer [N + 1, 3]; that of layer 0, no mask, is not used."""
    return np.array([(0, 0, 0), *colors], dtype=np.uint8)


def _to_canvas(masks: Iterable[NDArray[np.bool_]], size: Size) -> NDArray[np.int32]:
    """Resize masks [H, W] in drawing order, one at a time to save memory; return the topmost one per pixel [h, w],
    from 1; 0 = none."""
    layers = np.zeros(size[::-1], dtype=np.int32)
    for layer, mask in enumerate(masks, 1):
        small = _resize(np.where(mask, 255, 0).astype(np.uint8), size, cv2.INTER_LINEAR)
        if (scale := size[0] / mask.shape[1]) > 1:  # rounds the corners of the image's pixels
            small = np.asarray(cv2.GaussianBlur(small, (0, 0), 0.5 * scale), np.uint8)
        if mask.any() and small.max() < 128:  # smaller than a pixel of the canvas
            y, x = (int(place[0]) for place in mask.nonzero())
            small[y * size[1] // mask.shape[0], x * size[0] // mask.shape[1]] = 255
        layers[small > 127] = layer
    return layers


def _outline(canvas: RGBImage, layers: NDArray[np.int32], colors: Sequence[Color]) -> RGBImage:
    """Draw one line where two layers meet, in the colour of the upper one, over a wider translucent dark line, to be
    seen on snow and at night."""
    reach = max(1, round(max(canvas.shape) / 800))
    layers = _simplified(layers, 6 * reach).astype(np.float32)
    drawn = canvas.astype(np.float32)
    for sides, opacity in ((reach + 1, 0.6), (reach, 1.0)):
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * sides + 1, 2 * sides + 1))
        upper = cv2.dilate(layers, kernel)
        line = (upper > cv2.erode(layers, kernel)).astype(np.float32)[..., None]
        ink = _palette(colors if opacity == 1 else [DARK] * len(colors))[upper.astype(np.int32)]
        soft = cv2.GaussianBlur(np.concatenate([line * ink, line], axis=-1), (3, 3), 0.6) * opacity
        drawn = drawn * (1 - soft[..., 3:]) + soft[..., :3]
    return np.asarray(np.rint(drawn), np.uint8)


def _simplified(layers: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Give gaps between masks of at most `width` pixels, then parts of a layer of fewer than width**2 pixels, to the
    nearest other layer. The largest part of a layer stays."""
    covered = (layers > 0).view(np.uint8)
    closed = cv2.morphologyEx(covered, cv2.MORPH_CLOSE, np.ones((width + 1, width + 1), np.uint8))
    layers = _to_nearest(layers, np.asarray(closed - covered, np.uint8))
    specks = np.zeros_like(covered)
    for layer in np.unique(layers).tolist():
        x, y, w, h = cv2.boundingRect((layers == layer).view(np.uint8))
        box = slice(y, y + h), slice(x, x + w)
        _, parts, stats, _ = cv2.connectedComponentsWithStats((layers[box] == layer).view(np.uint8))
        areas = stats[1:, cv2.CC_STAT_AREA]
        specks[box] |= np.array([False, *(areas < min(width**2, areas.max()))])[parts]
    return _to_nearest(layers, specks)


def _to_nearest(layers: NDArray[np.int32], lost: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Give lost pixels [h, w] the layer of the nearest pixel that is not lost."""
    _, nearest = cv2.distanceTransformWithLabels(lost, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    kept = np.zeros(nearest.max() + 1, dtype=np.int32)
    kept[nearest[lost == 0]] = layers[lost == 0]
    return kept[nearest]


def _label_forms(prediction: Drawable, order: Sequence[int], text: int, width: int, scores: bool) -> list[list[str]]:
    """Write each mask's label in full, but for what no image of this width has room for, and shortened."""
    suffixes = [f" {prediction.scores[n]:.2f}" if scores else "" for n in order]
    room = width - 0.7 * text - text_width(" 0.00", text) * scores
    index = prediction.prompt_index[order].tolist()
    names = [display_names(prediction.prompts, index, text, limit) for limit in (room, min(room, 10 * text))]
    return [[f"{n}{suffix}".strip() for n in forms] for *forms, suffix in zip(*names, suffixes, strict=True)]


def _draw_labels(
    canvas: Image.Image, layers: NDArray[np.int32], colors: Sequence[Color], labels: list[list[str]], text: int
) -> None:
    """Label the visible part of each layer; large ones come first, as their labels need not move."""
    areas = np.bincount(layers.ravel(), minlength=len(colors) + 1)[1:]
    shown = [n for n in np.argsort(-areas, kind="stable").tolist() if areas[n] > 0]
    anchors = []
    for n in shown:
        visible = layers == n + 1
        x, y, width, height = cv2.boundingRect(visible.view(np.uint8))
        column, row = pole_of_inaccessibility(visible[y : y + height, x : x + width])
        anchors.append((x + column, y + row))
    box = 0.7 * text, round(1.4 * text)
    sizes = [{(round(text_width(form, text) + box[0]), box[1]): form for form in labels[n]} for n in shown]
    rects = place_labels(anchors, [list(forms) for forms in sizes], canvas.size)
    draw = ImageDraw.Draw(canvas)
    placed = [(colors[n], forms, *at, *r) for n, forms, at, r in zip(shown, sizes, anchors, rects, strict=True) if r]
    for color, _, x, y, x0, y0, x1, y1 in placed:
        if not (x0 <= x < x1 and y0 <= y < y1):
            end = min(max(x, x0), x1 - 1), min(max(y, y0), y1 - 1)
            draw.line([(x, y), end], DARK, 3)
            draw.line([(x, y), end], color, 1)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), color, DARK)
    for color, forms, _, _, x0, y0, x1, y1 in placed:
        draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), text // 4, color, DARK)
        luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        ink = INK if luma > 130 else (255, 255, 255)
        draw_text(canvas, ((x0 + x1) / 2, (y0 + y1) / 2), forms[x1 - x0, y1 - y0], ink, text, "m")
