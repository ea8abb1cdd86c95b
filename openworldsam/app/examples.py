"""Example images of the page: scenes of the Shapes world and questions about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode

from openworldsam.data.datasets.shapes import demo_scene
from openworldsam.data.shapes import expressions

SCENES = {152: "panoptic", 220: "instance", 11: "semantic", 148: "referring"}
"""Scene numbers and the task of each. The bundled weights segment all correctly (tests/app/test_examples.py)."""


class ExampleQuestion(NamedTuple):
    """An image uint8 [H, W, 3], its file name, and the prompts and task to try on it."""

    image: np.ndarray
    name: str
    prompts: list[str]
    task: str


def example_questions(cfg: CfgNode) -> Iterator[ExampleQuestion]:
    """Render the examples in the Shapes world of a config.

    Raises:
        ValueError: a key of DATASETS.SHAPES is wrong.
    """
    for index, task in SCENES.items():
        scene = demo_scene(cfg, index)
        if task == "referring":
            prompts = [texts[-1] for texts in expressions(scene).values()]
        else:
            names = (segment.name for segment in scene.segments if segment.is_thing or task != "instance")
            prompts = list(dict.fromkeys(names))
        yield ExampleQuestion(scene.image, f"scene{index}.png", prompts, task)
