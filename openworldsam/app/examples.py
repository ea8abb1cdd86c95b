"""Pictures to try the page on: scenes of the Shapes world and questions about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode

from openworldsam.data.datasets.shapes import configured_world, split_seed
from openworldsam.data.shapes import expressions, render

SCENES = {38: "panoptic", 97: "instance", 2: "semantic", 11: "referring"}
"""Numbers of scenes, and the task that each is asked."""


class Example(NamedTuple):
    """image: uint8 [H, W, 3]; name of its file; prompts; task."""

    image: np.ndarray
    name: str
    prompts: list[str]
    task: str


def examples(cfg: CfgNode) -> Iterator[Example]:
    """The examples, in the world of a config.

    Raises:
        ValueError: a key of DATASETS.SHAPES is wrong.
    """
    world, seed = configured_world(cfg), split_seed(cfg.DATASETS.SHAPES_SEED, "demo")
    for index, task in SCENES.items():
        scene = render(world, seed, index)
        prompts = list(dict.fromkeys(segment.name for segment in scene.segments))
        if task == "referring":
            prompts = [texts[-1] for texts in expressions(scene).values()]
        elif task == "instance":
            prompts = list(dict.fromkeys(segment.name for segment in scene.segments if segment.is_thing))
        yield Example(scene.image, f"scene{index}.png", prompts, task)
