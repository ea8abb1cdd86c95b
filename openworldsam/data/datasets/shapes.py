"""The splits of the Shapes world as datasets.

A split's scenes depend on DATASETS.SHAPES (the difficulty), DATASETS.SHAPES_SEED and the split's name alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from functools import partial
from typing import NamedTuple

from detectron2.config import CfgNode

from openworldsam.data.datasets.catalog import SEGMENTATION, register_dataset, set_metadata
from openworldsam.data.records.coco_json import Category
from openworldsam.data.records.scenes import Level, SceneRecord, SceneReference, category_names
from openworldsam.data.shapes import Kinds, Scene, World, colours_of, crowded, render


class Split(NamedTuple):
    """A split of the Shapes world.

    images: number of scenes.
    kinds, level: kinds and names of things.
    tasks: to score.
    protocol: of the evaluation, empty if TEST decides.
    crowd: its scenes are those of the `crowded` world.
    """

    images: int
    kinds: Kinds
    level: Level
    tasks: tuple[str, ...]
    protocol: str = ""
    crowd: bool = False

    def world(self, configured: World) -> World:
        """Return the split's world for that of the config."""
        return crowded(configured) if self.crowd else configured


SPLITS: dict[str, Split] = {
    # in training a pixel has two classes, so there is nothing to score
    "shapes_train": Split(20_000, "familiar", "both", ()),
    "shapes_crowd_train": Split(20_000, "familiar", "both", (), crowd=True),
    "shapes_val": Split(500, "familiar", "shape", SEGMENTATION),
    "shapes_novel_val": Split(500, "novel", "pair", SEGMENTATION),
    "shapes_crowd_val": Split(500, "familiar", "shape", SEGMENTATION, crowd=True),
    "shapes_refer_train": Split(20_000, "familiar", "referring", ("referring",)),
    "shapes_refer_val": Split(500, "familiar", "referring", ("referring",)),
    "shapes_absent_val": Split(500, "familiar", "shape", SEGMENTATION, "present+absent"),
    # to choose thresholds: ordinary scenes and crowds, as in training
    "shapes_held_out": Split(500, "familiar", "shape", SEGMENTATION, "present+absent"),
    "shapes_crowd_held_out": Split(500, "familiar", "shape", SEGMENTATION, "present+absent", crowd=True),
}


def register(cfg: CfgNode) -> None:
    """Register all splits for a config, in place of those for another; may be called again.

    Raises:
        ValueError: a key of DATASETS.SHAPES, or DATASETS.SHAPES_SEED, is wrong.
    """
    world = configured_world(cfg)
    if cfg.DATASETS.SHAPES_SEED < 0:
        raise ValueError(f"DATASETS.SHAPES_SEED must be 0 or more, got {cfg.DATASETS.SHAPES_SEED}")
    for name, split in SPLITS.items():
        try:
            classes = category_names(world, split.kinds, split.level)
        except ValueError:  # a small world may have no novel thing; loading the split says so
            classes = {}
        categories = [
            Category(index, name, thing, group=_group(name, thing))
            for index, (name, thing) in enumerate(classes.items())
        ]
        register_dataset(name, partial(load_split, name, world, cfg.DATASETS.SHAPES_SEED), categories, split.tasks)
        set_metadata(name, protocol=split.protocol)


def _group(name: str, is_thing: bool) -> str:
    """Names without a colour, and textures, are alike; "red circle" is like names with one of its words."""
    return "texture" if not is_thing else "" if " " in name else "shape"


def configured_world(cfg: CfgNode) -> World:
    """Return the world of DATASETS.SHAPES.

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
    """Return the seed of a split's scenes: 64 bits, so that no two splits share one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def load_split(name: str, world: World, seed: int) -> list[SceneRecord]:
    """Return the records of a split; image ids differ from those of all other splits, seeds and worlds.

    Raises:
        ValueError: the world has no things of the split's kinds.
    """
    split, scene_seed = SPLITS[name], split_seed(seed, name)
    world = split.world(world)
    colours_of(world, split.kinds)  # raises
    origin = hashlib.sha256(repr((world, scene_seed, split.kinds)).encode()).digest()
    first = int.from_bytes(origin[:4], "big") * 100_000
    return [
        SceneRecord(
            file_name=f"{name}/{index:06d}",
            image_id=first + index,
            height=world.size,
            width=world.size,
            scene=SceneReference(world, scene_seed, index, split.kinds, split.level),
        )
        for index in range(split.images)
    ]
