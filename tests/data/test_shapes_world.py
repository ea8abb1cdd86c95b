"""The Shapes world: scenes, their ground truth, and expressions that point at one thing."""

import itertools
import pickle
import re
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from openworldsam.data.shapes import (
    COLOURS,
    NOVEL_PAIRS,
    NOVEL_SHAPES,
    SHAPES,
    TEXTURES,
    Scene,
    SceneSegment,
    World,
    colours_of,
    expressions,
    render,
    thing_name,
)
from openworldsam.data.shapes.drawing import OUTLINES, Thing, coverage
from openworldsam.data.shapes.scene import MIN_PIXELS, Layers

SMALL = World(size=96, thing_size=(12, 48))


@pytest.fixture(scope="module")
def scenes():
    return [render(SMALL, 0, index, "all") for index in range(100)]


def things(scene):
    return [segment for segment in scene.segments if segment.is_thing]


def test_scene_depends_on_its_arguments_alone():
    first = [render(SMALL, 5, index) for index in range(4)]
    for index in (3, 1, 0, 2):
        again = render(pickle.loads(pickle.dumps(SMALL)), 5, index)
        np.testing.assert_array_equal(again.image, first[index].image)
        np.testing.assert_array_equal(again.segment_map, first[index].segment_map)
        assert again.segments == first[index].segments
    for other in (render(SMALL, 6, 0), render(SMALL, 5, 0, "all"), render(World(size=96, thing_size=(12, 47)), 5, 0)):
        assert not np.array_equal(other.image, first[0].image)


def test_this_world_has_not_changed_by_accident():
    scene = render(World(), 0, 4)
    areas = np.bincount(scene.segment_map.ravel()).tolist()
    described = [(segment.id, segment.colour, segment.name) for segment in scene.segments]
    assert described == [
        (1, None, "wood"),
        (2, None, "stone"),
        (3, None, "sky"),
        (4, "purple", "crescent"),
        (5, "purple", "crescent"),
        (6, "red", "star"),
        (7, "black", "crescent"),
        (8, "orange", "arrow"),
        (9, "purple", "crescent"),
        (10, "red", "square"),
        (11, "pink", "ellipse"),
        (12, "red", "crescent"),
        (13, "black", "star"),
    ]
    assert areas == pytest.approx(
        [4180, 11603, 15539, 22046, 27, 208, 173, 103, 99, 2162, 5644, 360, 1538, 1854], abs=3
    )  # another cv2 may round otherwise
    assert scene.image.mean(axis=(0, 1)) == pytest.approx([154.8, 130.0, 140.5], abs=0.5)


def test_ground_truth_is_consistent(scenes):
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert scene.segment_map.shape == (96, 96) and scene.segment_map.dtype == np.int32
        areas = np.bincount(scene.segment_map.ravel(), minlength=len(scene.segments) + 1)
        assert [segment.id for segment in scene.segments] == list(range(1, len(areas)))
        stuff = [segment.name for segment in scene.segments if not segment.is_thing]
        assert len(stuff) == len(set(stuff)) and set(stuff) <= set(TEXTURES)
        for segment in scene.segments:
            assert areas[segment.id] >= MIN_PIXELS
            assert (segment.colour in COLOURS) == (segment.name in SHAPES) == segment.is_thing
        assert 1 <= len(things(scene)) <= 10


def test_full_difficulty_has_what_makes_it_hard(scenes):
    several = np.mean([len({t.name for t in things(scene)}) < len(things(scene)) for scene in scenes])
    assert several >= 0.6
    assert {t.name for scene in scenes for t in things(scene)} == set(SHAPES)
    assert {t.colour for scene in scenes for t in things(scene)} == set(COLOURS)
    assert {s.name for scene in scenes for s in scene.segments} >= set(TEXTURES)
    assert any((scene.segment_map == 0).any() for scene in scenes)
    assert any(equal_neighbours(scene) for scene in scenes)
    assert any({t.id for t in things(scene)} & set(scene.segment_map[0].tolist()) for scene in scenes)  # cut


def equal_neighbours(scene):
    """Whether two things of one kind touch."""
    above, below = scene.segment_map[:-1], scene.segment_map[1:]
    pairs = np.unique(np.stack([above, below], axis=-1).reshape(-1, 2), axis=0)
    kinds = {segment.id: segment[2:] for segment in things(scene)}
    return any(a != b and a in kinds and kinds[a] == kinds.get(b) for a, b in pairs.tolist())


def test_training_never_sees_what_is_novel():
    def is_novel(thing):
        return thing.name in NOVEL_SHAPES or (thing.colour, thing.name) in NOVEL_PAIRS

    for index in range(100):
        assert not any(map(is_novel, things(render(SMALL, 1, index, "familiar"))))
        assert all(map(is_novel, things(render(SMALL, 1, index, "novel"))))


def test_every_word_stays_well_represented_in_training():
    familiar = colours_of(World(), "familiar")
    assert set(familiar) == set(SHAPES) - set(NOVEL_SHAPES)
    assert all(len(colours) == 8 for colours in familiar.values())
    assert all(sum(colour in colours for colours in familiar.values()) == 8 for colour in COLOURS)
    both = [
        (c, shape) for kinds in ("familiar", "novel") for shape, cs in colours_of(World(), kinds).items() for c in cs
    ]
    assert sorted(both) == sorted(itertools.product(COLOURS, SHAPES))


def test_nothing_is_hidden_too_much():
    square = np.ones((10, 10), bool)
    layers = Layers(40, max_hidden=0.5)
    assert layers.add((slice(0, 10), slice(0, 10)), square)
    assert not layers.add((slice(0, 10), slice(4, 14)), square)  # would hide 60 %
    assert layers.add((slice(0, 10), slice(6, 16)), square)  # hides 40 %
    assert not layers.add((slice(8, 18), slice(0, 10)), square)  # would hide 12 % more
    assert layers.add((slice(9, 19), slice(0, 10)), square)  # the bottom row: 46 %
    assert not layers.add((slice(30, 33), slice(0, 5)), np.ones((3, 5), bool))  # 15 pixels
    assert np.bincount(layers.owner.ravel()).tolist() == [1600 - 54 - 96 - 100, 54, 96, 100]


@pytest.mark.parametrize("shape", SHAPES)
def test_thing_has_its_size_wherever_it_is_turned(shape):
    _, upright = coverage(Thing(shape, "red", 40, 40, 60), 80)
    (rows, columns), turned = coverage(Thing(shape, "red", 40, 40, 60, angle=1), 80)
    assert turned.sum() == pytest.approx(upright.sum(), rel=0.02)
    y, x = np.nonzero(turned > 0.5)
    farthest = np.hypot(y + rows.start + 0.5 - 40, x + columns.start + 0.5 - 40).max()
    assert farthest == pytest.approx(30, abs=1.5)
    _, thin = coverage(Thing(shape, "red", 40, 40, 60, width=0.3), 80)
    assert thin.sum() == upright.sum() if shape in ("circle", "square") else thin.sum() < 0.95 * upright.sum()


def test_circle_covers_its_area():
    _, alpha = coverage(Thing("circle", "red", 20.3, 19.8, 20), 40)
    assert alpha.sum() == pytest.approx(np.pi * 100, rel=0.02)
    assert set(OUTLINES) == set(SHAPES)


def holds(scene, text, id_):
    """Whether a text points at a thing and at no other, by its plain meaning, without margins."""
    shapes, colours, textures = "|".join(SHAPES), "|".join(COLOURS), "|".join(TEXTURES)
    match = re.fullmatch(
        rf"the (?:(?P<most>\w+) )??(?:(?P<colour>{colours}) )?(?P<shape>{shapes})"
        rf"(?: (?P<side>left of|right of|above|below) the (?P<other>(?:{colours}) (?:{shapes}))"
        rf"| on the (?P<ground>{textures}))?",
        text,
    )
    assert match, text
    group = [t for t in things(scene) if t.name == match["shape"] and match["colour"] in (None, t.colour)]
    masks = {t.id: scene.segment_map == t.id for t in things(scene)}
    centre = {i: np.argwhere(mask).mean(axis=0) for i, mask in masks.items()}
    if match["most"]:
        measure = {
            "largest": lambda i: masks[i].sum(),
            "smallest": lambda i: -masks[i].sum(),
            "leftmost": lambda i: -centre[i][1],
            "rightmost": lambda i: centre[i][1],
            "topmost": lambda i: -centre[i][0],
            "bottommost": lambda i: centre[i][0],
        }[match["most"]]
        found = [max((t.id for t in group), key=measure)]
    elif match["side"]:
        (other,) = (t.id for t in things(scene) if thing_name(t.colour, t.name) == match["other"])
        axis, sign = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}[match["side"]]
        found = [t.id for t in group if sign * (centre[t.id] - centre[other])[axis] > 0]
    elif match["ground"]:
        stuff = [s for s in scene.segments if not s.is_thing]
        found = []
        for thing in group:
            near = scene.segment_map[binary_dilation(masks[thing.id], np.ones((3, 3)), iterations=2)]
            here = {s.name: np.count_nonzero(near == s.id) for s in stuff}
            if 2 * here[match["ground"]] > sum(here.values()):
                found.append(thing.id)
    else:
        found = [t.id for t in group]
    return found == [id_]


def test_every_expression_points_at_one_thing(scenes):
    forms = set()
    for scene in scenes:
        for id_, texts in expressions(scene).items():
            assert 1 <= len(texts) <= 8 and len(set(texts)) == len(texts)
            for text in texts:
                assert holds(scene, text, id_), (text, id_)
                forms |= {word for word in text.split() if word not in {*SHAPES, *COLOURS, *TEXTURES}}
    extremes = {"largest", "smallest", "leftmost", "rightmost", "topmost", "bottommost"}
    assert forms == {"the", "on", "left", "right", "of", "above", "below"} | extremes


def drawn(*boxes, ground="grass"):
    """A scene of 64 x 64 on one ground with things (colour, shape, box)."""
    segment_map = np.ones((64, 64), np.int32)
    for id_, (*_, box) in enumerate(boxes, start=2):
        segment_map[box] = id_
    kinds = [SceneSegment(id_, True, shape, colour) for id_, (colour, shape, _) in enumerate(boxes, start=2)]
    return Scene(np.zeros((64, 64, 3), np.uint8), segment_map, (SceneSegment(1, False, ground), *kinds))


def test_expressions_of_a_scene_by_hand():
    scene = drawn(
        ("red", "star", np.s_[10:20, 5:15]),
        ("red", "star", np.s_[10:20, 45:55]),
        ("blue", "square", np.s_[12:18, 28:34]),
    )
    left = {"the leftmost red star", "the leftmost star"}
    left |= {"the red star left of the blue square", "the star left of the blue square"}
    assert set(expressions(scene, per_family=9)[2]) == left
    assert expressions(scene)[4] == ("the blue square", "the square")


def test_nothing_is_said_without_a_margin():
    """Two equal stars above each other, apart by the margin of 2 pixels in no direction but y."""
    scene = drawn(("red", "star", np.s_[10:20, 30:40]), ("red", "star", np.s_[21:31, 31:41]))
    assert set(expressions(scene, per_family=9)[2]) == {"the topmost red star", "the topmost star"}
    assert expressions(drawn(("red", "star", np.s_[0:9, 0:9]), ("red", "star", np.s_[1:10, 10:19])), 9).keys() == {2, 3}
    assert expressions(drawn()) == {}


@pytest.mark.parametrize(
    "field, value",
    [
        ("size", 8),
        ("num_things", (4, 2)),
        ("num_things", (-1, 2)),
        ("num_stuff", (0, 3)),
        ("num_stuff", 3),
        ("shapes", ("blob",)),
        ("colours", ()),
        ("textures", ("sand", "sand")),
        ("thing_size", (12, 300)),
        ("max_hidden", 1.5),
        ("same_kind", -0.1),
        ("touching", 2),
        ("thin", "much"),
        ("void", 1.1),
        ("lighting", -1),
        ("blur", 99),
        ("noise", -1),
    ],
)
def test_impossible_world_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        World(**{field: value})


def test_world_from_a_config_is_hashable():
    lists: dict[str, Any] = {"num_things": [1, 2], "shapes": ["circle", "star"]}
    assert hash(World(**lists)) == hash(World(num_things=(1, 2), shapes=("circle", "star")))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": -1}, "seed"),
        ({"index": -1}, "index"),
        ({"kinds": "odd"}, "kinds must be"),
        ({"kinds": "novel"}, "is novel"),
    ],
)
def test_impossible_scene_says_why(change, message):
    world = World(shapes=("circle",), colours=("blue",))
    with pytest.raises(ValueError, match=message):
        render(**{"world": world, "seed": 0, "index": 0, **change})


@pytest.mark.parametrize(
    "world", [World(size=32, thing_size=(12, 32)), World(size=64, num_things=(0, 0), thing_size=(12, 60))]
)
def test_smallest_worlds(world):
    for index in range(20):
        scene = render(world, 0, index)
        assert scene.segments and len(things(scene)) <= world.num_things[1]
        expressions(scene)
