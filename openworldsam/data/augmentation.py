"""Optional augmentations. The paper trains without; with them, features change at each visit and cannot be cached.

Shapes: image uint8 [3, H, W]; P targets, bool [N_p, H, W].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (0.1, 2.0)
"""Range of large-scale jitter relative to the target size."""


def flip(image: Tensor, targets: list[Tensor], generator: np.random.Generator) -> tuple[Tensor, list[Tensor]]:
    """Mirror image and targets left to right with probability 1/2."""
    if generator.random() < 0.5:
        return image, targets
    return image.flip(-1), [target.flip(-1) for target in targets]


def large_scale_jitter(
    image: Tensor, targets: list[Tensor], size: int, generator: np.random.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Rescale by a random factor, then crop or pad (with 0, lower right) to `size` x `size`.

    Args:
        image: uint8 [3, H, W].
        targets: P times bool [N_p, H, W].
        size: side of the result in pixels, and of the image's longer side at factor 1.
        generator: draws the factor and the crop.

    Returns:
        uint8 [3, size, size] and P times bool [N_p, size, size].
    """
    factor = generator.uniform(*SCALES) * size / max(image.shape[1:])
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    top, left = (int(generator.integers(max(1, side - size + 1))) for side in (height, width))

    def place(resized: Tensor) -> Tensor:
        part = resized[..., top : top + size, left : left + size]
        return F.pad(part, (0, size - part.shape[-1], 0, size - part.shape[-2]))

    pixels = F.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False, antialias=True)[
        0
    ]
    resized = [
        F.interpolate(target[None].float(), (height, width), mode="nearest-exact")[0].bool()
        if len(target)
        else target.new_zeros(0, height, width)
        for target in targets
    ]
    return place(pixels.round().to(torch.uint8)), [place(target) for target in resized]
