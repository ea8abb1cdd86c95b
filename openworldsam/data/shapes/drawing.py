"""Outlines, colours and textures of the things and stuff of the Shapes world, as formulas.

Shapes: H, W size of the scene; h, w size of a thing's box; N corners of an outline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

_SUBPIXELS = 4
_SHADOW = 4
"""Pixels around a thing in its box, for its shadow."""


def _arc(start: float, stop: float, radius: float = 1.0, x: float = 0.0, corners: int = 48) -> np.ndarray:
    """Return points [N, 2] on a circle around (x, 0); angles in radians."""
    angle = np.linspace(start, stop, corners)
    return np.stack([x + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _circle(width: float) -> list[np.ndarray]:
    return [_arc(0, 2 * np.pi)]


def _ellipse(width: float) -> list[np.ndarray]:
    return [_arc(0, 2 * np.pi) * (1, 0.3 + 0.25 * width)]


def _square(width: float) -> list[np.ndarray]:
    return [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.7]


def _triangle(width: float) -> list[np.ndarray]:
    base = 0.35 + 0.52 * width
    return [np.array([(0, -1), (base, 0.5), (-base, 0.5)])]


def _star(width: float) -> list[np.ndarray]:
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, 0.18 + 0.24 * width, 1)
    return [np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)]


def _ring(width: float) -> list[np.ndarray]:
    return [_arc(0, 2 * np.pi), _arc(0, 2 * np.pi, 1 - 0.48 * width)]


def _cross(width: float) -> list[np.ndarray]:
    a = 0.32 * width
    quarter = np.array([(0.95, -a), (0.95, a), (a, a)])
    turns = [np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return [np.concatenate([quarter @ turn for turn in turns])]


def _arrow(width: float) -> list[np.ndarray]:
    shaft, head = 0.22 * width, 0.35 + 0.3 * width
    half = np.array([(1, 0), (0.15, head), (0.15, shaft), (-0.95, shaft)])
    return [np.concatenate([half, half[::-1] * (1, -1)])]


def _crescent(width: float) -> list[np.ndarray]:
    """Cut the disk by a second circle through the tips and the crescent's middle."""
    tip, middle = np.pi / 4, 0.75 * width - 1
    x = (1 - middle**2) / (2 * (np.cos(tip) - middle))
    radius = x - middle
    inner = np.arctan2(np.sin(tip), np.cos(tip) - x)
    return [np.concatenate([_arc(tip, 2 * np.pi - tip), _arc(2 * np.pi - inner, inner, radius, x)])]


def _drop(width: float) -> list[np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, 48)
    return [np.stack([(0.45 + 0.35 * width) * np.sin(angle) * np.sin(angle / 2) ** 1.5, -np.cos(angle)], axis=1)]


def _heart(width: float) -> list[np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, 64)
    x = (0.55 + 0.45 * width) * 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return [np.stack([x, -2.5 - y], axis=1) / 17]


def _hourglass(width: float) -> list[np.ndarray]:
    a, waist = 0.25 + 0.45 * width, 0.12 * width
    return [np.array([(-a, -0.9), (a, -0.9), (waist, 0), (a, 0.9), (-a, 0.9), (-waist, 0)])]


OUTLINES: dict[str, Callable[[float], list[np.ndarray]]] = {
    outline.__name__.lstrip("_"): outline
    for outline in (
        *(_circle, _ellipse, _square, _triangle, _star, _ring, _cross, _arrow, _crescent, _drop),
        *(_heart, _hourglass),
    )
}
"""Functions from a width in (0, 1] (1 is sturdy, 0.3 thin) to closed curves [N, 2] in about the unit disk, filled by
the even-odd rule. All are distinct at any rotation, so there is no diamond."""

RGB: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (248, 224, 45),
    "green": (35, 150, 60),
    "blue": (35, 75, 215),
    "purple": (125, 45, 170),
    "pink": (250, 150, 195),
    "brown": (110, 66, 32),
    "white": (242, 242, 240),
    "black": (28, 28, 32),
}


class Thing(NamedTuple):
    """A thing to draw: diameter of the enclosing circle and centre in pixels, angle in radians."""

    shape: str
    colour: str
    x: float
    y: float
    diameter: float
    angle: float = 0.0
    width: float = 1.0


Box = tuple[slice, slice]


def coverage(thing: Thing, size: int) -> tuple[Box, np.ndarray]:
    """Return a thing's box in a scene of size x size, and the covered fraction of its pixels, float32 [h, w]."""
    curves = OUTLINES[thing.shape](thing.width)
    radius = max(np.linalg.norm(curve, axis=1).max() for curve in curves)
    scale = thing.diameter / 2 / radius
    cos, sin = scale * np.cos(thing.angle), scale * np.sin(thing.angle)
    points = [curve @ np.array([(cos, sin), (-sin, cos)]) + (thing.x, thing.y) for curve in curves]
    low = np.clip(np.floor(np.min([p.min(0) for p in points], axis=0)) - _SHADOW, 0, size - 1).astype(int)
    high = np.clip(np.ceil(np.max([p.max(0) for p in points], axis=0)) + _SHADOW, 0, size).astype(int)
    w, h = np.maximum(high - low, 1).tolist()
    fine = np.zeros((h * _SUBPIXELS, w * _SUBPIXELS), np.uint8)
    # four fractional bits; pixel centres are whole numbers in cv2
    corners = [np.rint(((p - low) * _SUBPIXELS - 0.5) * 16).astype(np.int32) for p in points]
    cv2.fillPoly(fine, corners, (255,), cv2.LINE_8, 4)
    alpha = cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return (slice(low[1], low[1] + h), slice(low[0], low[0] + w)), alpha


@lru_cache
def _weights(count: int, size: int) -> np.ndarray:
    """Return the matrix of cubic interpolation of `count` values, float32 [size, count]."""
    return cv2.resize(np.eye(count, dtype=np.float32), (count, size), interpolation=cv2.INTER_CUBIC)


def smooth(rng: Generator, rows: int, columns: int, size: int) -> np.ndarray:
    """Interpolate random values at rows x columns places: float32 [size, size], mostly 0..1."""
    values = rng.random((rows, columns), np.float32)
    if min(rows, columns) < 32:  # cv2 is slow at edges, and a tiny image is all edge
        return _weights(rows, size) @ values @ _weights(columns, size).T
    return cv2.resize(values, (size, size), interpolation=cv2.INTER_CUBIC)


def _axis(size: int) -> np.ndarray:
    """Return pixel centres on a scale of 0 to 1, float32 [size]."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def _grass(rng: Generator, size: int) -> np.ndarray:
    blades = smooth(rng, size // int(rng.integers(5, 9)), size // 2, size)
    return 0.7 * blades + 0.4 * smooth(rng, 6, 6, size) - 0.05


def _water(rng: Generator, size: int) -> np.ndarray:
    ripples = rng.uniform(9, 16) * _axis(size)[:, None] + rng.uniform(0.8, 1.6) * smooth(rng, 9, 5, size)
    return 0.4 + 0.3 * np.sin(2 * np.pi * ripples) + 0.25 * smooth(rng, 24, 8, size)


def _sand(rng: Generator, size: int) -> np.ndarray:
    slope = rng.uniform(-4, 4)
    dunes = rng.uniform(3, 6) * _axis(size)[:, None] + slope * _axis(size) + 0.7 * smooth(rng, 4, 4, size)
    return 0.35 + 0.15 * np.sin(2 * np.pi * dunes) + 0.4 * rng.random((size, size), np.float32)


def _sky(rng: Generator, size: int) -> np.ndarray:
    clouds = 1.4 * smooth(rng, 5, 4, size) + 0.6 * smooth(rng, 12, 9, size) - rng.uniform(0.7, 1.1)
    return 0.25 * _axis(size)[:, None] + np.clip(clouds, 0, 0.75)


def _brick(rng: Generator, size: int) -> np.ndarray:
    rows = int(rng.integers(11, 19))
    columns = rows // 2
    y = rows * _axis(size) + rng.uniform(0, 1)
    x = columns * _axis(size) + 0.5 * (np.floor(y) % 2)[:, None]
    tone = 0.45 * rng.random((rows + 1, columns + 1), np.float32)
    bricks = tone[y.astype(int)[:, None], x.astype(int)]
    return np.where((x % 1 < 0.08) | (y % 1 < 0.15)[:, None], np.float32(1), bricks)


def _snow(rng: Generator, size: int) -> np.ndarray:
    return 0.35 + 0.75 * smooth(rng, 4, 4, size) + 0.25 * smooth(rng, size // 4, size // 4, size) - 0.1


def _stone(rng: Generator, size: int) -> np.ndarray:
    """Cobbles, bright at their centres and dark between them."""
    cells = int(rng.integers(9, 14))
    middles = (np.indices((cells, cells)) + rng.uniform(0.15, 0.85, (2, cells, cells))) * (size / cells)
    ground = np.ones((size, size), np.uint8)
    ground[tuple(middles.astype(int))] = 0
    far = cv2.distanceTransform(ground, cv2.DIST_L2, 3) * (1.3 * cells / size)
    return 1 - far * far


def _wood(rng: Generator, size: int) -> np.ndarray:
    """Sharp lines of grain along x, bent around knots."""
    rings = rng.uniform(7, 12) * _axis(size)[:, None] + rng.uniform(1.5, 3) * smooth(rng, 5, 3, size)
    return 0.75 * (rings % 1) + 0.3 * smooth(rng, size // 2, 6, size)


class Texture(NamedTuple):
    """A function that draws a field [size, size] of about 0 to 1, and the colours of 0 and 1."""

    field: Callable[[Generator, int], np.ndarray]
    dark: tuple[int, int, int]
    light: tuple[int, int, int]


TEXTURES: dict[str, Texture] = {
    "grass": Texture(_grass, (38, 78, 22), (142, 186, 74)),
    "water": Texture(_water, (12, 70, 110), (88, 178, 190)),
    "sand": Texture(_sand, (186, 148, 92), (240, 214, 160)),
    "sky": Texture(_sky, (92, 150, 224), (236, 242, 248)),
    "brick": Texture(_brick, (138, 56, 44), (206, 186, 172)),
    "snow": Texture(_snow, (190, 202, 222), (250, 251, 253)),
    "stone": Texture(_stone, (58, 58, 64), (158, 156, 150)),
    "wood": Texture(_wood, (122, 82, 48), (198, 152, 98)),
}


def palette(name: str, rng: Generator) -> np.ndarray:
    """Return the 256 colours of a texture, slightly different each time: float32 [256, 3]."""
    ends = np.array([TEXTURES[name].dark, TEXTURES[name].light], np.float32)
    ends = ends * rng.uniform(0.88, 1.08) + rng.normal(0, 5, (2, 3))
    t = np.linspace(0, 1, 256)[:, None]
    return ((1 - t) * ends[0] + t * ends[1]).astype(np.float32)


def shade(name: str, rng: Generator) -> np.ndarray:
    """Return a colour, slightly different each time but distinct from the others: float32 [3]."""
    return (np.array(RGB[name]) * rng.uniform(0.85, 1.06) + rng.uniform(-10, 10, 3)).astype(np.float32)


def paint(canvas: np.ndarray, box: Box, alpha: np.ndarray, rgb: np.ndarray, rng: Generator) -> None:
    """Draw a thing in place, with a darker rim and a shadow, so that equal neighbours stay distinct.

    Args:
        canvas: float32 [H, W, 3].
        box, alpha: from `coverage`.
        rgb: float32 [3].
        rng: draws the direction of the light.
    """
    soft = cv2.GaussianBlur(alpha, (0, 0), 1.3, borderType=cv2.BORDER_REPLICATE)
    slope = rng.uniform(-0.12, 0.12, 2)
    h, w = alpha.shape
    light = 0.72 + 0.28 * soft + slope[0] * (_axis(h)[:, None] - 0.5) + slope[1] * (_axis(w) - 0.5)
    under = canvas[box] * ((1 - alpha) * (1 - 0.45 * soft))[..., None]
    canvas[box] = under + (alpha * light.astype(np.float32))[..., None] * rgb
