"""SAM2's image encoder, without its video modules (paper Fig. 4a).

Shapes: B images, C = WIDTH = 256 channels, S = IMAGE_SIZE / 16 = 64 feature side.
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

STRIDE = 16
"""Pixels of the input per position of the embedding."""


class ImageFeatures(NamedTuple):
    """What SAM2 sees of B images.

    embed: [B, C, S, S], the level that the adapter and the decoder attend to.
    high_res: [B, C/8, 4S, 4S] and [B, C/4, 2S, 2S], added while masks are upscaled.
    """

    embed: Tensor
    high_res: tuple[Tensor, Tensor]

    def of_image(self, image: int) -> ImageFeatures:
        """The features of one image, as a batch of one."""
        one = slice(image, image + 1)
        return ImageFeatures(self.embed[one], (self.high_res[0][one], self.high_res[1][one]))


class SAM2ImageEncoder(nn.Module):
    """Hiera trunk, feature pyramid and the two 1x1 convolutions that prepare the decoder's high-res features.

    Args:
        image_size: side of the square input in pixels.
        embed_dim, num_heads, stages, global_att_blocks, window_spec, pos_embed_size: the Hiera trunk; the
            defaults are Hiera-L.
        width: channels C of the features.
        compiled: run it through torch.compile.

    Raises:
        ValueError: a size that SAM2 cannot have.
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
        if image_size % 32:
            raise ValueError(f"MODEL.SAM2.IMAGE_SIZE must be a multiple of 32, got {image_size}")
        if width % 16:
            raise ValueError(f"MODEL.SAM2.WIDTH must be a multiple of 16, got {width}")
        if len(stages) != 4 or len(window_spec) != 4:
            raise ValueError(
                f"MODEL.SAM2.STAGES and WINDOW_SPEC have 4 entries each, got {list(stages)} and {list(window_spec)}"
            )
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
        # scalp drops the coarsest level, which only feeds the level above it
        self.backbone = ImageEncoder(trunk=trunk, neck=neck, scalp=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_s0 = nn.Conv2d(width, width // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(width, width // 4, kernel_size=1)
        if compiled:
            self.compile()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        sam2 = cfg.MODEL.SAM2
        return {
            "image_size": sam2.IMAGE_SIZE,
            "embed_dim": sam2.EMBED_DIM,
            "num_heads": sam2.NUM_HEADS,
            "stages": sam2.STAGES,
            "global_att_blocks": sam2.GLOBAL_ATT_BLOCKS,
            "window_spec": sam2.WINDOW_SPEC,
            "pos_embed_size": sam2.POS_EMBED_SIZE,
            "width": sam2.WIDTH,
            "compiled": cfg.MODEL.COMPILE,
        }

    @property
    def feature_side(self) -> int:
        """S, positions along a side of the embedding."""
        return self.image_size // STRIDE

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode B normalised images [B, 3, IMAGE_SIZE, IMAGE_SIZE]."""
        level0, level1, level2 = self.backbone(images)["backbone_fpn"]
        # SAM2 marks "a still image, no memory of a video" by adding this vector
        embed = level2 + self.no_mem_embed.permute(2, 0, 1)
        return ImageFeatures(embed, (self.conv_s0(level0), self.conv_s1(level1)))
