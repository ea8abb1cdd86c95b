"""CLIP's text and image vectors side by side as prompt encoder: late fusion (Table 4, row 2).

Shapes: B images, S input side, N prompts of a chunk, L text tokens, E width of the shared space (768 for ViT-L/14),
D = 2E.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.clip_text import CLIPTextEncoder


@PROMPT_ENCODER_REGISTRY.register()
class CLIPLateFusionEncoder(CLIPTextEncoder):
    """The text's end token and the image's [CLS] token after the last layers, each projected, concatenated."""

    component = Component(
        name="clip",
        prefixes=(("", "prompt_encoder."),),
        recognised_by="text_projection.",
        layout="CLIP",
        not_read=r"logit_scale|.*\.position_ids",
        hint="(openworldsam download clip_large)",
    )
    paper_row = "CLIP-Large"
    paper_sizes: ClassVar = {"EMBED_DIM": 1536}
    image_processor = "CLIPImageProcessor"

    def build(self, library: Any, config: Any) -> None:
        super().build(library, config)
        self.vision_model = library.CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.embed_dim = 2 * config.projection_dim

    def encode_images(self, images: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(images).pooler_output)

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        assert images is not None
        return torch.cat([super().encode_texts(None, ids, padding), images], dim=1)
