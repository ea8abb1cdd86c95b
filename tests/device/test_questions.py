"""Questions to a model on a device: the CPU's answers, and few waits whatever the number of prompts."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from comparison import assert_same, waits

from openworldsam.inference import TASKS
from openworldsam.video import VideoPredictor
from openworldsam.video.memory import SAM2Memory
from openworldsam.video.trackers import MemoryTracker

ROOT = Path(__file__).parents[2]
MOST = 6
"""Waits of a question."""
PROMPTS = [f"{how} {thing}" for thing in ("cat", "sky", "road", "dog") for how in ("red", "dark", "old", "wet", "new")]
STUFF = [prompt for prompt in PROMPTS if "sky" in prompt or "road" in prompt]


def preset(name):
    """The keys of a preset that change the answers of a model."""
    nodes = yaml.safe_load((ROOT / f"configs/presets/{name}.yaml").read_text())["MODEL"]
    return [item for node, keys in nodes.items() for key in keys for item in (f"MODEL.{node}.{key}", keys[key])]


SETTINGS = {
    **{name: preset(name) for name in ("paper", "released", "improved")},
    "two-stage": ["MODEL.INFERENCE.TWO_STAGE", True],
    "two-stage, all": ["MODEL.INFERENCE.TWO_STAGE", True, "MODEL.INFERENCE.TWO_STAGE_KEEP", "all"],
    "top k": ["MODEL.INFERENCE.TOP_K", 5],
    "bf16": ["MODEL.PRECISION", "bf16"],
    "match": ["MODEL.INFERENCE.SCORE", "match"],
    "product, two-stage": ["MODEL.INFERENCE.SCORE", "product", "MODEL.INFERENCE.TWO_STAGE", True],
}


@pytest.fixture
def opts_of(head_opts):
    """The options of a setting; where it needs a score head, a random one, whose scores are low."""
    head = [*head_opts, "MODEL.INFERENCE.MATCH_THRESHOLD", 0.1]
    return lambda setting: [*SETTINGS[setting], *(head if "MODEL.INFERENCE.SCORE" in SETTINGS[setting] else [])]


@pytest.fixture
def picture(pictures):
    return pictures[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting not in ("top k", "two-stage, all")])
def test_a_question_about_an_image(predictors, picture, opts_of, setting):
    cpu, device = predictors(*opts_of(setting))
    for count in (3, 20):
        for task in TASKS:
            cpu.set_image(picture)
            device.set_image(picture)
            question = {"prompts": PROMPTS[:count], "task": task, "stuff": STUFF, "overlap_threshold": 0.1}
            expected = cpu.predict(**question)
            print(f"\n{setting}, {task}, {count} prompts")
            answer, number = waits(lambda: device.predict(**question))  # noqa: B023
            assert_same(answer, expected)
            assert len(answer.scores)
            assert number <= MOST


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_forward_pass(predictors, pictures, opts_of, setting):
    cpu, device = predictors(*opts_of(setting))
    batch = [
        {"image": pictures[0], "prompts": PROMPTS[:4], "is_thing": [True, False, True, False]},
        {"image": pictures[1], "prompts": []},
        {"image": pictures[1], "prompts": ["dog"]},
    ]
    assert_same(device.model(batch, tasks=tuple(TASKS)), cpu.model(batch, tasks=tuple(TASKS)))
    assert_same(device.model(batch[1:2], tasks=tuple(TASKS)), cpu.model(batch[1:2], tasks=tuple(TASKS)))


def test_questions_that_follow(predictors, picture):
    cpu, device = predictors()
    for predictor in (cpu, device):
        predictor.set_image(picture)
    for prompts in (["cat", "dog"], ["dog", "sky", "cat"], ["cat"], []):
        assert_same(device.predict(prompts), cpu.predict(prompts))


def test_clicks_and_boxes(predictors, picture):
    cpu, device = predictors()
    for predictor in (cpu, device):
        predictor.set_image(picture)
    found = cpu.predict(["cat"])
    for click in (
        {"points": [[30, 20]]},
        {"points": [[30, 20], [50, 40]], "labels": [1, 0]},
        {"box": [10, 10, 40, 50]},
        {"points": [[30, 20]], "box": [10, 10, 40, 50], "among": found},
        {"mask": found.masks[0]},
        {"mask": found.logits[0]},
    ):
        print(f"\n{click.keys()}")
        answer, number = waits(lambda: device.click(**click))  # noqa: B023
        assert_same(answer, cpu.click(**click))
        assert number <= MOST


def test_boxes_beside_texts(predictors, picture, opts_of):
    """They cost a wait, and each thing that is shown another."""
    cpu, device = predictors(*opts_of("match"))
    boxes = {"boxes": [[10, 10, 60, 50], [0, 0, 20, 20]], "box_labels": ["within", "not"]}
    for prompts, given, more in (
        (PROMPTS, boxes, 1),
        (["cat"], boxes, 1),
        (["cat"], {"boxes": [[10, 10, 40, 50], [40, 5, 80, 50]]}, 2),
    ):
        for predictor in (cpu, device):
            predictor.set_image(picture)
        answer, number = waits(lambda: device.predict(prompts, **given))  # noqa: B023
        assert_same(answer, cpu.predict(prompts, **given))
        assert number <= MOST + more


def test_many_images(predictors, pictures):
    answers = [list(predictor.predict_batch(pictures, PROMPTS[:3], batch_size=2)) for predictor in predictors()]
    for answer, expected in zip(*reversed(answers), strict=True):
        assert_same(answer, expected)


@pytest.mark.parametrize("opts", [[], ["INSTANCE_NMS", "box"], ["SEMANTIC_WEIGHT", "softmax"]])
def test_a_large_vocabulary(predictors, pictures, opts):
    cpu, device = predictors(*(f"MODEL.INFERENCE.{key}" if n % 2 == 0 else key for n, key in enumerate(opts)))
    things = [prompt not in STUFF for prompt in PROMPTS]
    x = {"image": pictures[0], "height": 60, "width": 90, "prompts": PROMPTS, "is_thing": things}
    print(f"\n{len(PROMPTS)} prompts, 7 at a time")
    answer, number = waits(lambda: device.model([x], tasks=tuple(TASKS), prompt_chunk=7))
    assert number <= MOST * 3  # chunks
    assert_same(answer, cpu.model([x], tasks=tuple(TASKS), prompt_chunk=7))


@pytest.mark.parametrize("tracker", ["detection", "memory"])
def test_a_clip(predictors, picture, tracker):
    clips = [VideoPredictor(predictor, ["cat", "dog"], tracker="detection", every=2) for predictor in predictors()]
    if tracker == "memory":
        memories = [SAM2Memory(clip.predictor.model) for clip in clips]
        memories[1].load_state_dict(memories[0].state_dict())
        for clip, memory in zip(clips, memories, strict=True):
            clip._tracker = MemoryTracker(memory)
    cpu, device = clips
    for frame in range(4):
        moved = np.roll(picture, 3 * frame, axis=1)
        expected = cpu.step(moved)
        print(f"\n{tracker}, frame {frame}")
        seen, number = waits(lambda: device.step(moved))  # noqa: B023
        assert_same(seen, expected)
        assert number <= MOST + 3  # masks, presences and ids of the objects followed
    assert_same(device.tracks, cpu.tracks)
    assert cpu.tracks
