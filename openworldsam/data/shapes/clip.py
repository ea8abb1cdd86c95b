"""Clips of the Shapes world: things moving over a still ground, with the identity of each pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from openworldsam.data.shapes.drawing import Thing, coverage, paint, shade
from openworldsam.data.shapes.scene import render
from openworldsam.data.shapes.world import World


class Moving(NamedTuple):
    """A thing in the first frame, and its motion per frame: x, y in pixels."""

    thing: Thing
    step: tuple[float, float]


def render_clip(
    world: World, seed: int, moving: Sequence[Moving], num_frames: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Render a clip frame by frame; the same arguments give the same clip.

    Args:
        world: of the ground; only its stuff is drawn.
        seed: of ground, exact colours and noise, at least 0.
        moving: things from back to front; they may leave the scene.
        num_frames: length of the clip.

    Yields:
        image uint8 [H, W, 3] (RGB) and identities int32 [H, W]: n for the n-th thing, 0 for the ground.

    Raises:
        ValueError: the seed is negative.
    """
    ground = render(replace(world, num_things=(0, 0), noise=0.0), seed, 0, "all").image.astype(np.float32)
    noise = np.random.default_rng([seed, num_frames])
    for frame in range(num_frames):
        canvas, identity = ground.copy(), np.zeros(ground.shape[:2], np.int32)
        for number, (thing, step) in enumerate(moving, start=1):
            here = thing._replace(x=thing.x + frame * step[0], y=thing.y + frame * step[1])
            box, alpha = coverage(here, world.size)
            rng = np.random.default_rng([seed, number])  # the same colour and light in every frame
            paint(canvas, box, alpha, shade(thing.colour, rng), rng)
            identity[box][alpha > 0.5] = number
        image = canvas + noise.normal(0, 0.3 * world.noise, canvas.shape)
        yield np.clip(image, 0, 255).astype(np.uint8), identity
