"""Takes the prompt encoder's place where it is switched off (Table 5, E2): every prompt is zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY, PromptEncoder


@PROMPT_ENCODER_REGISTRY.register()
class ZeroPromptEncoder(PromptEncoder):
    """Reads neither text nor image; has no weights."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.embed_dim = cfg.MODEL.PROMPT_ENCODER.EMBED_DIM

    def preprocess(self, image: Tensor) -> Tensor:
        return torch.zeros(3, 1, 1, device=image.device)

    def forward(self, images: Tensor, prompts: Sequence[str], image_index: Tensor) -> Tensor:
        return images.new_zeros(len(prompts), self.embed_dim)
