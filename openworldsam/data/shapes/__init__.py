"""Shapes: a small synthetic world, on which the whole method runs on a laptop."""

from openworldsam.data.shapes.expressions import expressions
from openworldsam.data.shapes.scene import Scene, SceneSegment, render
from openworldsam.data.shapes.world import (
    COLOURS,
    NOVEL_PAIRS,
    NOVEL_SHAPES,
    SHAPES,
    TEXTURES,
    Kinds,
    World,
    colours_of,
    crowded,
    is_novel,
    thing_name,
)

__all__ = [
    "COLOURS",
    "NOVEL_PAIRS",
    "NOVEL_SHAPES",
    "SHAPES",
    "TEXTURES",
    "Kinds",
    "Scene",
    "SceneSegment",
    "World",
    "colours_of",
    "crowded",
    "expressions",
    "is_novel",
    "render",
    "thing_name",
]
