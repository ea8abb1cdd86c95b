"""Takes the prompt encoder's place when all prompt embeddings come from a feature cache."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import Tensor

from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY, PromptEncoder


def without_prompt_encoder(cfg: CfgNode) -> CfgNode:
    """Copy a config and put `CachedPromptEncoder` in the place of its prompt encoder."""
    cfg = cfg.clone()
    cfg.MODEL.PROMPT_ENCODER.NAME = CachedPromptEncoder.__name__
    return cfg


@PROMPT_ENCODER_REGISTRY.register()
class CachedPromptEncoder(PromptEncoder):
    """Has the width of the embeddings and no weights; raises ValueError when asked to encode."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.embed_dim = cfg.MODEL.PROMPT_ENCODER.EMBED_DIM

    def preprocess(self, image: Tensor) -> Tensor:
        raise ValueError("the prompt encoder is not loaded: this model takes prompt embeddings from a feature cache")

    def forward(self, images: Tensor, prompts: Sequence[str], image_index: Tensor) -> Tensor:
        return self.preprocess(images)
