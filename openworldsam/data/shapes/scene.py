"""Scenes of the Shapes world with their ground truth, each a function of (world, seed, index, kinds) alone.

Shapes: H = W = size of the world, h, w of a thing's box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, get_args

import cv2
import numpy as np
from numpy.random import Generator

from openworldsam.data.shapes.drawing import TEXTURES, Box, Thing, coverage, paint, palette, shade, smooth
from openworldsam.data.shapes.world import Kinds, World, colours_of

MIN_PIXELS = 16
"""Fewest visible pixels of a thing; smaller regions of stuff become void."""

_TRIES = 8
_MIN_CONTRAST = 70.0
"""Distance in RGB required between a thing and its background; reduced with each try."""


class SceneSegment(NamedTuple):
    """A segment of a scene: its value in the map, thing or stuff, shape or texture, and the colour of a thing."""

    id: int
    is_thing: bool
    name: str
    colour: str | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """An image with its panoptic ground truth.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        segment_map: int32 [H, W], the visible segment of each pixel; 0 is void.
        segments: ids 1, 2, ... of stuff, then of things from back to front; each has pixels.
    """

    image: np.ndarray
    segment_map: np.ndarray
    segments: tuple[SceneSegment, ...]


def render(world: World, seed: int, index: int, kinds: Kinds = "familiar") -> Scene:
    """Render one scene; the same arguments give the same scene in any order and process.

    Args:
        world: its difficulty.
        seed: of the split, at least 0.
        index: of the scene in the split, at least 0.
        kinds: things that it may contain.

    Raises:
        ValueError: seed or index is negative, or the world has no things of these kinds.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be at least 0, got {seed} and {index}")
    colours_of(world, kinds)  # raises for bad kinds
    rng = np.random.default_rng([seed, index, get_args(Kinds).index(kinds)])
    canvas, stuff, textures = _draw_stuff(world, rng)
    layers = Layers(world.size, world.max_hidden)
    things = _draw_things(world, kinds, canvas, layers, rng)
    image = _photograph(world, canvas, rng)

    stuff[layers.owner > 0] = 0
    areas = np.bincount(stuff.ravel(), minlength=len(textures) + 1)
    segments: list[SceneSegment] = []
    new_id = np.zeros(len(textures) + 1, np.int32)
    for old, texture in enumerate(textures, start=1):
        if areas[old] >= MIN_PIXELS:
            segments.append(SceneSegment(len(segments) + 1, False, texture))
            new_id[old] = len(segments)
    segment_map = new_id[stuff]
    np.copyto(segment_map, layers.owner + len(segments), where=layers.owner > 0)
    first = len(segments) + 1
    segments += [SceneSegment(n, True, thing.shape, thing.colour) for n, thing in enumerate(things, start=first)]
    return Scene(image, segment_map, tuple(segments))


class Layers:
    """Things laid on top of each other, each at least partly visible.

    Args:
        size: side of the scene in pixels.
        max_hidden: largest fraction of a thing's pixels that others may cover.
    """

    def __init__(self, size: int, max_hidden: float) -> None:
        self.owner = np.zeros((size, size), np.int32)  # thing on top of each pixel, 0 for none
        self._least: list[float] = [0.0]  # pixels of the n-th thing that must stay visible
        self._visible = np.zeros(1)
        self._shown = 1 - max_hidden

    def add(self, box: Box, mask: np.ndarray) -> bool:
        """Lay a thing (bool [h, w]) over the others and return True if enough of each stays visible."""
        area = np.count_nonzero(mask)
        under = self.owner[box]
        left = self._visible - np.bincount(under[mask], minlength=len(self._visible))
        if area < MIN_PIXELS or (left[1:] < self._least[1:]).any():
            return False
        under[mask] = len(self._least)
        self._visible = np.append(left, area)
        self._least.append(max(MIN_PIXELS, self._shown * area))
        return True


def _draw_stuff(world: World, rng: Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw regions that meet along curves.

    Returns:
        canvas float32 [H, W, 3]; map int32 [H, W], 0 for void, n for the n-th texture; the textures.
    """
    size = world.size
    count = int(rng.integers(world.num_stuff[0], world.num_stuff[1] + 1))
    drawn = rng.choice(world.textures, count, replace=count > len(world.textures) or rng.random() < 0.25).tolist()
    textures = list(dict.fromkeys(drawn))
    best = np.full((size, size), -np.inf, np.float32)
    region = np.zeros((size, size), np.uint8)
    for name in drawn:
        cells = int(rng.integers(3, 5))
        height = smooth(rng, cells, cells, size)
        higher = height > best
        np.copyto(best, height, where=higher)
        np.copyto(region, np.uint8(textures.index(name) + 1), where=higher)
    tone = np.zeros((size, size), np.uint8)
    for n, name in enumerate(textures, start=1):
        field = np.clip(TEXTURES[name].field(rng, size), 0, 1) * 255
        np.copyto(tone, field, where=region == n, casting="unsafe")
    stuff = region.astype(np.int32)
    palettes = np.concatenate([palette(name, rng) for name in textures])
    canvas = np.take(palettes, 256 * (stuff - 1) + tone, axis=0)
    if rng.random() < world.void:
        width = 2 + int(rng.integers(0, 2 + size // 64))
        border = cv2.morphologyEx(region, cv2.MORPH_GRADIENT, np.ones((width, width), np.uint8)) > 0
        stuff[border] = 0
        canvas[border] = 0.4 * canvas[border] + rng.uniform(20, 110)
    return canvas, stuff, textures


def _draw_things(world: World, kinds: Kinds, canvas: np.ndarray, layers: Layers, rng: Generator) -> list[Thing]:
    """Draw things from back to front, each at the first visible place of a few tries."""
    things: list[Thing] = []
    for _ in range(int(rng.integers(world.num_things[0], world.num_things[1] + 1))):
        for attempt in range(_TRIES):
            thing = _imagine(world, kinds, things, rng)
            rgb = shade(thing.colour, rng)
            box, alpha = coverage(thing, world.size)
            mask = alpha > 0.5
            if not mask.any():
                continue
            on_stuff = mask & (layers.owner[box] == 0)  # equal things may touch, but not be inside each other
            ground = canvas[box][on_stuff if 2 * np.count_nonzero(on_stuff) > np.count_nonzero(mask) else mask]
            contrast = np.linalg.norm(ground.mean(axis=0) - rgb)
            if contrast >= _MIN_CONTRAST * (1 - attempt / _TRIES) and layers.add(box, mask):
                paint(canvas, box, alpha, rgb, rng)
                things.append(thing)
                break
    return things


def _imagine(world: World, kinds: Kinds, things: list[Thing], rng: Generator) -> Thing:
    """Draw the parameters of a thing, new or like an earlier one."""
    colours = colours_of(world, kinds)
    low, high = world.thing_size
    x, y = rng.uniform(0, world.size, 2)
    diameter = low * (high / low) ** rng.random()
    shape = str(rng.choice(list(colours)))
    colour = ""
    if things:
        model = things[int(rng.integers(len(things)))]
        repeats = rng.random() < world.same_kind
        if repeats:
            shape, colour = model.shape, model.colour if rng.random() < 0.7 else ""
        if rng.random() < world.touching:
            if repeats:
                diameter = float(np.clip(model.diameter * rng.uniform(0.7, 1.4), low, high))
            direction, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.5) * (diameter + model.diameter)
            x, y = model.x + distance * np.cos(direction), model.y + distance * np.sin(direction)
            x, y = np.clip([x, y], 0, world.size)
    colour = colour or str(rng.choice(colours[shape]))
    thin = diameter > 24 and rng.random() < world.thin
    width = rng.uniform(0.3, 0.5) if thin else rng.uniform(0.75, 1)
    return Thing(shape, colour, float(x), float(y), float(diameter), rng.uniform(0, 2 * np.pi), width)


def _photograph(world: World, canvas: np.ndarray, rng: Generator) -> np.ndarray:
    """Add uneven light, a little blur and noise: float32 [H, W, 3] to uint8 [H, W, 3]."""
    light = 1 + world.lighting * (2 * smooth(rng, 2, 2, world.size) - 1)
    image = cv2.multiply(canvas, cv2.merge([light] * 3))
    if (sigma := world.blur * rng.random()) > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    # the sum of two uniform bytes is much faster than normal noise
    one, two = np.frombuffer(rng.bytes(2 * image.size), np.uint8).reshape(2, *image.shape)
    scale = world.noise * rng.uniform(0.3, 1) / 104.5  # 104.5: standard deviation of the sum
    return cv2.addWeighted(image, 1, cv2.add(one, two, dtype=cv2.CV_32F), scale, -255 * scale, dtype=cv2.CV_8U)
