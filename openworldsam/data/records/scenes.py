"""Scenes of the Shapes world, rendered when they are read; no file is involved.

Shapes: H, W image size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from openworldsam.data.records.record import Record, Referent, Segment
from openworldsam.data.shapes import NOVEL_SHAPES, Kinds, Scene, World, colours_of, expressions, render, thing_name

Level = Literal["shape", "pair", "both", "referring"]
"""Names of things: "circle"; "red circle", but "heart" for a novel shape; "circle" and "red circle"; expressions."""


@dataclass(frozen=True)
class SceneReference:
    """Arguments of `render`, and the kind of names that things get."""

    world: World
    seed: int
    index: int
    kinds: Kinds
    level: Level


class SceneRecord(Record):
    """A scene of a split: scene, a `SceneReference`; file_name, such as shapes_val/000012, is only for messages."""

    __slots__ = ()
    truth_keys = ("scene",)
    listing_step = 50  # listing renders the scene

    @property
    def is_referring(self) -> bool:
        return self["scene"].level == "referring"

    def files(self) -> list[str]:
        return []

    def without_ground_truth(self) -> Record:
        return self

    def read_image(self) -> np.ndarray:
        return render_reference(self["scene"]).image

    def segments(self) -> list[Segment]:
        """List the segments of the scene; a segment with two names is there twice."""
        reference, scene = self["scene"], render_reference(self["scene"])
        classes = category_names(reference.world, reference.kinds, reference.level)
        ids = {name: index for index, name in enumerate(classes)}
        areas = np.bincount(scene.segment_map.ravel())
        return [
            Segment(id=s.id, category_id=ids[name], isthing=s.is_thing, iscrowd=False, area=int(areas[s.id]))
            for s in scene.segments
            for name in (_thing_names(reference.level, s.colour, s.name) if s.colour else (s.name,))
        ]

    def read_panoptic(self) -> tuple[np.ndarray, list[Segment]]:
        return render_reference(self["scene"]).segment_map, self.segments()

    def sentences(self) -> list[tuple[str, ...]]:
        return list(expressions(render_reference(self["scene"])).values())

    def read_referring(self) -> list[Referent]:
        scene = render_reference(self["scene"])
        return [Referent(texts, scene.segment_map == id_) for id_, texts in expressions(scene).items()]


@lru_cache(maxsize=4)
def render_reference(scene: SceneReference) -> Scene:
    """Render the scene of a record, or return a recent one, as ground truth is read right after the image.

    Its arrays are read-only, so that nobody can change what the next reader gets.
    """
    rendered = render(scene.world, scene.seed, scene.index, scene.kinds)
    for pixels in (rendered.image, rendered.segment_map):
        pixels.setflags(write=False)
    return rendered


@lru_cache
def category_names(world: World, kinds: Kinds, level: Level) -> dict[str, bool]:
    """List the classes of a split by id: things (True) by shape, then textures; none for expressions.

    Raises:
        ValueError: the world has no things of these kinds.
    """
    if level == "referring":
        return {}
    things = [
        name
        for shape, colours in colours_of(world, kinds).items()
        for colour in colours
        for name in _thing_names(level, colour, shape)
    ]
    return dict.fromkeys(things, True) | dict.fromkeys(world.textures, False)


def _thing_names(level: Level, colour: str, shape: str) -> tuple[str, ...]:
    pair = thing_name(colour, shape)
    if level == "both":
        return shape, pair
    return (shape,) if level == "shape" or shape in NOVEL_SHAPES else (pair,)
