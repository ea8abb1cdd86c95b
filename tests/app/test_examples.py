"""The examples of the page with the bundled weights, which the page serves by default."""

from pathlib import Path

import numpy as np
import pytest

from openworldsam import OpenWorldSAMPredictor
from openworldsam.app.examples import SCENES, example_questions
from openworldsam.app.session import Session
from openworldsam.data.datasets.shapes import demo_scene
from openworldsam.data.shapes import expressions


@pytest.fixture(scope="module")
def bundled(shapes_opts):
    config = Path(__file__).parents[2] / "configs/shapes/openworldsam.yaml"
    return OpenWorldSAMPredictor(config, opts=shapes_opts)


def true_masks(scene, example):
    """The masks that an example asks for, by prompt."""
    if example.task == "referring":
        return [(texts[-1], scene.segment_map == id_) for id_, texts in expressions(scene).items()]
    named = [(segment.name, scene.segment_map == segment.id) for segment in scene.segments]
    if example.task == "semantic":
        return [(text, np.any([mask for name, mask in named if name == text], axis=0)) for text in example.prompts]
    return [(name, mask) for name, mask in named if name in example.prompts]


@pytest.mark.parametrize("number", SCENES)
def test_every_example_is_answered_rightly(bundled, number):
    """As many masks as there are, and each true one is found with an IoU of at least 0.8."""
    example = next(each for each in example_questions(bundled.cfg) if each.name == f"scene{number}.png")
    thresholds = {name: getattr(bundled.model.inference, name) for name in ("score_threshold", "nms_threshold")}
    session = Session(bundled, example.image, example.name, max_work=10**9)
    session.ask(
        example.prompts, example.task, {**thresholds, "overlap_threshold": bundled.model.inference.overlap_threshold}
    )
    wanted = true_masks(demo_scene(bundled.cfg, number), example)
    shown = session.shown
    found = [(shown.prompts[n], mask) for n, mask in zip(shown.prompt_index, shown.masks, strict=True)]
    assert len(found) == len(wanted)
    for text, mask in wanted:
        assert max((mask & other).sum() / (mask | other).sum() for name, other in found if name == text) > 0.8
