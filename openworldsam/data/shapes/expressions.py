"""Referring expressions for the things of a scene, each true of one thing only, by a clear margin.

All measurements are of visible pixels: a thing half hidden is half as large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import find_objects

from openworldsam.data.shapes.scene import Scene
from openworldsam.data.shapes.world import thing_name

_AREA_RATIO = 1.3
"""Smallest ratio between the areas of the largest thing and the next."""

_MARGIN = 8 / 256
"""Smallest distance of two centres in x or y, as a fraction of the scene's side."""

_ON, _OFF = 0.6, 0.3
"""A thing is on the grass if it makes up this fraction of its surroundings or more, and off it with this or less."""


class _Visible(NamedTuple):
    """A visible thing: area in pixels, centre as fractions of the scene, and the share of each texture around it."""

    id: int
    kind: str
    shape: str
    area: float
    x: float
    y: float
    ground: dict[str, float]


_Found = Iterator[tuple[int, str]]


def expressions(scene: Scene, per_family: int = 2) -> dict[int, tuple[str, ...]]:
    """Make unambiguous texts: names, superlatives, relations to another thing, and the texture beneath.

    Args:
        scene: with its ground truth.
        per_family: most texts per thing from each of these four families.

    Returns:
        texts by segment id; things without an unambiguous text are left out.
    """
    things = _measure(scene)
    groups: dict[str, list[_Visible]] = {}
    for thing in things:
        groups.setdefault(thing.kind, []).append(thing)
        groups.setdefault(thing.shape, []).append(thing)
    unique = [group[0] for name, group in groups.items() if len(group) == 1 and name == group[0].kind]
    texts: dict[int, list[str]] = {}
    for family in (_names(groups), _superlatives(groups), _relations(groups, unique), _places(groups)):
        found: dict[int, list[str]] = {}
        for id_, text in family:
            found.setdefault(id_, []).append(text)
        for id_, choice in found.items():
            first = id_ * per_family % len(choice)  # vary the words among things
            texts.setdefault(id_, []).extend((choice[first:] + choice[:first])[:per_family])
    return {id_: tuple(texts[id_]) for id_ in sorted(texts)}


def _measure(scene: Scene) -> list[_Visible]:
    """Measure the things of a scene, in the order of its segments."""
    size = len(scene.segment_map)
    ids = scene.segment_map.ravel()
    along = np.tile((np.arange(size) + 0.5) / size, (size, 1))
    area = np.bincount(ids)
    x, y = (np.bincount(ids, weights) / np.maximum(area, 1) for weights in (along.ravel(), along.T.ravel()))
    boxes = find_objects(scene.segment_map)
    stuff = {segment.id: segment.name for segment in scene.segments if not segment.is_thing}
    return [
        _Visible(
            segment.id,
            thing_name(segment.colour, segment.name),
            segment.name,
            float(area[segment.id]),
            float(x[segment.id]),
            float(y[segment.id]),
            _surroundings(scene.segment_map, segment.id, boxes[segment.id - 1], stuff),
        )
        for segment in scene.segments
        if segment.colour is not None
    ]


def _surroundings(
    segment_map: np.ndarray, id_: int, box: tuple[slice, slice], stuff: dict[int, str]
) -> dict[str, float]:
    """Return the share of each texture in the stuff around a thing; empty if only other things surround it."""
    reach = max(2, len(segment_map) // 64)
    crop = segment_map[tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)]
    mask = (crop == id_).astype(np.uint8)
    near = cv2.dilate(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > mask
    counts = np.bincount(crop[near], minlength=max(stuff, default=0) + 1)
    total = sum(counts[i] for i in stuff)
    return {name: float(counts[i] / total) for i, name in stuff.items()} if total else {}


def _names(groups: dict[str, list[_Visible]]) -> _Found:
    for name, group in groups.items():
        if len(group) == 1:
            yield group[0].id, f"the {name}"


_MEASURES: dict[str, tuple[Callable[[_Visible], float], float]] = {
    "largest": (lambda thing: np.log(thing.area), np.log(_AREA_RATIO)),
    "smallest": (lambda thing: -np.log(thing.area), np.log(_AREA_RATIO)),
    "leftmost": (lambda thing: -thing.x, _MARGIN),
    "rightmost": (lambda thing: thing.x, _MARGIN),
    "topmost": (lambda thing: -thing.y, _MARGIN),
    "bottommost": (lambda thing: thing.y, _MARGIN),
}


def _superlatives(groups: dict[str, list[_Visible]]) -> _Found:
    for word, (measure, margin) in _MEASURES.items():
        for name, group in groups.items():
            if len(group) > 1:
                first, second = sorted(group, key=measure, reverse=True)[:2]
                if measure(first) >= measure(second) + margin:
                    yield first.id, f"the {word} {name}"


_DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def _relations(groups: dict[str, list[_Visible]], unique: list[_Visible]) -> _Found:
    """Yield things that are the only one of several on one side of a thing of unique kind."""
    for name, group in groups.items():
        for other in unique:
            if len(group) == 1 or other.shape == group[0].shape:
                continue
            for words, (dx, dy) in _DIRECTIONS.items():
                ahead = [dx * (thing.x - other.x) + dy * (thing.y - other.y) for thing in group]
                beside = [abs(dy * (thing.x - other.x)) + abs(dx * (thing.y - other.y)) for thing in group]
                there = [i for i in range(len(group)) if ahead[i] >= max(_MARGIN, beside[i])]
                if len(there) == 1 and all(a <= -_MARGIN for i, a in enumerate(ahead) if i != there[0]):
                    yield group[there[0]].id, f"the {name} {words} the {other.kind}"


def _places(groups: dict[str, list[_Visible]]) -> _Found:
    for name, group in groups.items():
        for texture in {texture: None for thing in group for texture in thing.ground}:
            on = [thing for thing in group if thing.ground.get(texture, 0) >= _ON]
            rest_is_off = all(thing.ground and thing.ground[texture] <= _OFF for thing in group if thing not in on)
            if len(group) > 1 and len(on) == 1 and rest_is_off:
                yield on[0].id, f"the {name} on the {texture}"
