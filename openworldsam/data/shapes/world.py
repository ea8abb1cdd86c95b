"""Settings of the Shapes world: names of things and stuff, difficulty, and the things kept from training."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal, get_args

from openworldsam.data.shapes.drawing import OUTLINES, RGB
from openworldsam.data.shapes.drawing import TEXTURES as _TEXTURES

SHAPES = tuple(OUTLINES)
COLOURS = tuple(RGB)
TEXTURES = tuple(_TEXTURES)

NOVEL_SHAPES = ("heart", "hourglass")
"""Shapes in no scene of an adapter's training, in any colour; the encoders were trained on all."""

NOVEL_PAIRS = frozenset(
    (colour, shape)
    for shape, colours in {
        "circle": ("red", "purple"),
        "ellipse": ("green", "black"),
        "square": ("pink", "orange"),
        "triangle": ("black", "blue"),
        "star": ("yellow", "brown"),
        "ring": ("orange", "white"),
        "cross": ("purple", "red"),
        "arrow": ("white", "green"),
        "crescent": ("blue", "pink"),
        "drop": ("brown", "yellow"),
    }.items()
    for colour in colours
)
"""Pairs in no scene of an adapter's training; each colour is still seen on 8 of the 10 familiar shapes."""

Kinds = Literal["familiar", "novel", "all"]
"""Things of a split: without novel shapes and pairs (training), only those, or all."""


@dataclass(frozen=True)
class World:
    """Difficulty of the scenes; the defaults are the highest.

    Attributes:
        size: side of a scene in pixels.
        num_things: fewest and most things of a scene; fewer where they do not fit.
        num_stuff: fewest and most regions of stuff; regions of one texture are one segment.
        shapes, colours, textures: names to choose from.
        thing_size: smallest and largest diameter in pixels, drawn uniformly on a logarithmic scale.
        max_hidden: largest fraction of a thing that later ones may hide.
        same_kind: probability that a thing repeats an earlier one's shape, and mostly its colour.
        touching: probability that a thing touches an earlier one, which is the repeated one if there is one.
        thin: probability that a thing larger than 24 pixels is a slender variant of its shape.
        void: probability that regions of stuff are separated by a void band.
        lighting: largest relative change of brightness over a scene.
        blur: largest standard deviation of the blur in pixels.
        noise: largest standard deviation of the noise, on the scale 0..255.
    """

    size: int = 256
    num_things: tuple[int, int] = (1, 10)
    num_stuff: tuple[int, int] = (2, 5)
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    textures: tuple[str, ...] = TEXTURES
    thing_size: tuple[int, int] = (12, 128)
    max_hidden: float = 0.6
    same_kind: float = 0.4
    touching: float = 0.4
    thin: float = 0.2
    void: float = 0.3
    lighting: float = 0.3
    blur: float = 0.8
    noise: float = 9.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):  # from a config file; lists are not hashable
                object.__setattr__(self, field.name, tuple(value))
            _check(self, field.name, getattr(self, field.name))


def crowded(world: World) -> World:
    """Return the world with 4 to 10 things of half the size, most of which repeat or touch others."""
    low, high = world.thing_size
    return replace(
        world, num_things=(4, 10), thing_size=(max(6, low // 2), max(6, high // 2)), same_kind=0.8, touching=0.4
    )


_RANGES = {"num_things": (0, 1000), "num_stuff": (1, 16), "thing_size": (6, 4096)}
_NAMES = {"shapes": SHAPES, "colours": COLOURS, "textures": TEXTURES}


def _check(world: World, field: str, value: object) -> None:
    """Raise a ValueError if a value is out of range."""
    if field in _NAMES:
        known = _NAMES[field]
        if not isinstance(value, tuple) or not value or len(set(value)) < len(value) or not set(value) <= set(known):
            raise ValueError(f"{field} must be different ones of {', '.join(known)}, got {value!r}")
    elif field in _RANGES:
        low, high = _RANGES[field]
        if field == "thing_size":
            high = world.size
        whole = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, int) for v in value)
        if not whole or not low <= value[0] <= value[1] <= high:  # type: ignore[index]
            raise ValueError(f"{field} must be two whole numbers, {low} <= least <= most <= {high}, got {value!r}")
    elif field == "size":
        if not isinstance(value, int) or not 32 <= value <= 4096:
            raise ValueError(f"size must be a whole number from 32 to 4096, got {value!r}")
    else:
        most = {"blur": 16.0, "noise": 64.0}.get(field, 1.0)
        if not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise ValueError(f"{field} must be a number from 0 to {most:g}, got {value!r}")


def thing_name(colour: str, shape: str) -> str:
    """Return the prompt for a shape in one colour."""
    return f"{colour} {shape}"


def is_novel(colour: str, shape: str) -> bool:
    """Return whether no training scene contains such a thing."""
    return shape in NOVEL_SHAPES or (colour, shape) in NOVEL_PAIRS


@lru_cache
def colours_of(world: World, kinds: Kinds) -> dict[str, tuple[str, ...]]:
    """Return the shapes of a split's things, each with its colours.

    Raises:
        ValueError: `kinds` is unknown, or the world has no such thing.
    """
    if kinds not in get_args(Kinds):
        raise ValueError(f"kinds must be {', '.join(get_args(Kinds))}, got {kinds!r}")
    allowed = {
        shape: tuple(c for c in world.colours if kinds == "all" or is_novel(c, shape) == (kinds == "novel"))
        for shape in world.shapes
    }
    if not (allowed := {shape: colours for shape, colours in allowed.items() if colours}):
        raise ValueError(f"no pair of shapes {world.shapes} and colours {world.colours} is {kinds}")
    return allowed
