"""The splits of the Shapes world as datasets. No file is read: a record says which scene it is, and reading renders it.

A split's scenes follow from DATASETS.SHAPES (the difficulty), DATASETS.SHAPES_SEED and the split's name alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from openworldsam.data.datasets.coco import SEGMENTATION, Segment, set_metadata
from openworldsam.data.shapes import NOVEL_SHAPES, Kinds, Scene, World, colours_of, render, thing_name

Level = Literal["shape", "pair", "both", "referring"]
"""What things are called: "circle"; "red circle", but a novel shape "heart"; "circle" and "red circle"; expressions."""


class Split(NamedTuple):
    """A split: number of scenes, their things and names, tasks to score, protocol if always the same (else empty)."""

    images: int
    kinds: Kinds
    level: Level
    tasks: tuple[str, ...]
    protocol: str = ""


SPLITS: dict[str, Split] = {
    "shapes_train": Split(20_000, "familiar", "both", ()),  # nothing to score: a pixel has two classes
    "shapes_val": Split(500, "familiar", "shape", SEGMENTATION),
    "shapes_novel_val": Split(500, "novel", "pair", SEGMENTATION),
    "shapes_refer_train": Split(20_000, "familiar", "referring", ("referring",)),
    "shapes_refer_val": Split(500, "familiar", "referring", ("referring",)),
    "shapes_absent_val": Split(500, "familiar", "shape", SEGMENTATION, "present+absent"),
}


@dataclass(frozen=True)
class SceneReference:
    """The arguments of `render`, and what the scene's things are called."""

    world: World
    seed: int
    index: int
    kinds: Kinds
    level: Level


class SceneRecord(TypedDict):
    """A scene of a split; file_name is for messages alone, as shapes_val/000012."""

    file_name: str
    image_id: int
    height: int
    width: int
    scene: SceneReference


def register(cfg: CfgNode) -> None:
    """Register all splits as a config has them, in place of those of another; may be called again.

    Raises:
        ValueError: a key of DATASETS.SHAPES, or DATASETS.SHAPES_SEED, is wrong.
    """
    world = configured_world(cfg)
    if cfg.DATASETS.SHAPES_SEED < 0:
        raise ValueError(f"DATASETS.SHAPES_SEED is a whole number from 0, got {cfg.DATASETS.SHAPES_SEED}")
    for name, split in SPLITS.items():
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        DatasetCatalog.register(name, partial(load_split, name, world, cfg.DATASETS.SHAPES_SEED))
        try:
            classes = category_names(world, split.kinds, split.level)
        except ValueError:  # a small world may have no novel thing; who asks for the split's scenes is told
            classes = {}
        entries = {"tasks": split.tasks, "protocol": split.protocol}
        set_metadata(name, vocabulary=list(classes), is_thing=list(classes.values()), **entries)


def configured_world(cfg: CfgNode) -> World:
    """The world of DATASETS.SHAPES.

    Raises:
        ValueError: a value is wrong; names the key.
    """
    try:
        return World(**{field.name: cfg.DATASETS.SHAPES[field.name.upper()] for field in fields(World)})
    except ValueError as error:
        field, _, rest = str(error).partition(" ")  # a World names its field first
        raise ValueError(f"DATASETS.SHAPES.{field.upper()} {rest}") from None


def demo_scene(cfg: CfgNode, index: int) -> Scene:
    """Render a scene that belongs to no dataset split, for demonstrations.

    Raises:
        ValueError: a key of DATASETS.SHAPES is wrong, or the index is negative.
    """
    return render(configured_world(cfg), split_seed(cfg.DATASETS.SHAPES_SEED, "demo"), index)


def split_seed(seed: int, name: str) -> int:
    """The seed of a split's scenes: 64 bits, so that no two splits share one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def load_split(name: str, world: World, seed: int) -> list[SceneRecord]:
    """The records of a split. An image's id tells it from the scenes of all other splits, seeds and worlds.

    Raises:
        ValueError: the world has no things of the split's kinds.
    """
    split, own_seed = SPLITS[name], split_seed(seed, name)
    colours_of(world, split.kinds)  # complains
    origin = hashlib.sha256(repr((world, own_seed, split.kinds)).encode()).digest()
    first = int.from_bytes(origin[:4], "big") * 100_000
    return [
        SceneRecord(
            file_name=f"{name}/{index:06d}",
            image_id=first + index,
            height=world.size,
            width=world.size,
            scene=SceneReference(world, own_seed, index, split.kinds, split.level),
        )
        for index in range(split.images)
    ]


@lru_cache(maxsize=4)
def render_reference(scene: SceneReference) -> Scene:
    """The scene of a record; the last few are kept, as picture and ground truth are asked for one after the other."""
    return render(scene.world, scene.seed, scene.index, scene.kinds)


@lru_cache
def category_names(world: World, kinds: Kinds, level: Level) -> dict[str, bool]:
    """The classes of a split in the order of their ids: things (True) by shape, then textures; none for expressions.

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


def scene_segments(reference: SceneReference) -> list[Segment]:
    """The segments of a scene; one that has two names stands there twice."""
    scene = render_reference(reference)
    classes = category_names(reference.world, reference.kinds, reference.level)
    ids = {name: index for index, name in enumerate(classes)}
    areas = np.bincount(scene.segment_map.ravel())
    return [
        Segment(id=s.id, category_id=ids[name], isthing=s.is_thing, iscrowd=False, area=int(areas[s.id]))
        for s in scene.segments
        for name in (_thing_names(reference.level, s.colour, s.name) if s.colour else (s.name,))
    ]
