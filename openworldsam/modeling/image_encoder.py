"""SAM2's image encoder, without its video modules (paper Fig. 4a).

Shapes: B images of H x W pixels, C = 256 channels (MODEL.SAM2.WIDTH), S = 64 feature side (IMAGE_SIZE / 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import Tensor, nn
from torch.nn import functional as F

from openworldsam.config import arguments

STRIDE = 16
"""Input pixels per position of the feature map, along each side."""


def resize_for_sam2(image: Tensor, size: int, antialias: bool = False) -> Tensor:
    """Resize an image to SAM2's square input bilinearly, with the rounding of uint8 arithmetic on every device.

    A horizontal pass, then a vertical one, each rounded half up. Without antialiasing, for a size that is a power of
    two, the result equals `F.interpolate` on a uint8 CPU tensor bit for bit (for other sizes, the 16-bit weights of the
    latter make it differ by one or two grey levels); rounding only once would change a fifth of the pixels.

    Args:
        image: uint8 [3, H, W].
        size: side of the result in pixels.
        antialias: average over the source pixels when shrinking.

    Returns:
        float [3, size, size] with whole values 0..255.
    """
    rows = F.interpolate(
        image[None].float(), (image.shape[1], size), mode="bilinear", align_corners=False, antialias=antialias
    )
    rows = torch.floor(rows + 0.5)
    both = F.interpolate(rows, (size, size), mode="bilinear", align_corners=False, antialias=antialias)
    return torch.floor(both + 0.5)[0]


class ImageFeatures(NamedTuple):
    """SAM2's features of B images.

    embed: [B, C, S, S], the level that adapter and mask decoder attend to.
    high_res: [B, C/8, 4S, 4S] and [B, C/4, 2S, 2S], added when masks are upscaled.
    """

    embed: Tensor
    high_res: tuple[Tensor, Tensor]

    def of_image(self, image: int) -> ImageFeatures:
        """Return the features of one image, as a batch of one."""
        one = slice(image, image + 1)
        return ImageFeatures(self.embed[one], (self.high_res[0][one], self.high_res[1][one]))


class SAM2ImageEncoder(nn.Module):
    """Hiera trunk, feature pyramid, and the two 1x1 convolutions of the decoder's high-res features.

    The arguments are the keys of MODEL.SAM2, which `config.py` explains, and whether to use torch.compile.

    Raises:
        ValueError: a size that SAM2 does not support.
    """

    @configurable
    def __init__(
        self,
        *,
        image_size: int = 1024,
        embed_dim: int = 144,
        num_heads: int = 2,
        stages: Sequence[int] = (2, 6, 36, 4),
        global_att_blocks: Sequence[int] = (23, 33, 43),
        window_spec: Sequence[int] = (8, 4, 16, 8),
        pos_embed_size: Sequence[int] = (7, 7),
        width: int = 256,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        for key, size, step in (("IMAGE_SIZE", image_size, 32), ("WIDTH", width, 16)):
            if size < step or size % step:
                raise ValueError(f"MODEL.SAM2.{key} must be a multiple of {step}, got {size}")
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"MODEL.SAM2.NUM_HEADS must divide EMBED_DIM, got {num_heads} and {embed_dim}")
        if len(stages) != 4 or len(window_spec) != 4:
            got = f"got {list(stages)} and {list(window_spec)}"
            raise ValueError(f"MODEL.SAM2.STAGES and WINDOW_SPEC must have 4 entries each, {got}")
        self.image_size = image_size
        self.width = width
        trunk = Hiera(
            embed_dim=embed_dim,
            num_heads=num_heads,
            stages=tuple(stages),
            global_att_blocks=tuple(global_att_blocks),
            window_spec=tuple(window_spec),
            window_pos_embed_bkg_spatial_size=tuple(pos_embed_size),
        )
        neck = FpnNeck(
            position_encoding=PositionEmbeddingSine(width, warmup_cache=False),
            d_model=width,
            backbone_channel_list=trunk.channel_list,
            fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        )
        # scalp drops the coarsest level, which is only needed to compute the next finer one
        self.backbone = ImageEncoder(trunk=trunk, neck=neck, scalp=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_s0 = nn.Conv2d(width, width // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(width, width // 4, kernel_size=1)
        if compiled:
            self.compile()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**arguments(cfg.MODEL.SAM2, "WEIGHTS"), "compiled": cfg.MODEL.COMPILE}

    @property
    def feature_side(self) -> int:
        """S, positions along a side of the feature map."""
        return self.image_size // STRIDE

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode B normalised images [B, 3, IMAGE_SIZE, IMAGE_SIZE]."""
        level0, level1, level2 = self.backbone(images)["backbone_fpn"]
        # SAM2 adds this vector to frames without a video memory
        embed = level2 + self.no_mem_embed.permute(2, 0, 1)
        return ImageFeatures(embed, (self.conv_s0(level0), self.conv_s1(level1)))
