"""Florence-2 as prompt encoder: one transformer encoder over image and text tokens (Table 10).

Shapes: B images, S side of the input, T image tokens, N prompts of a chunk, L text tokens, D width (base 768).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.library import LibraryEncoder, joint_mask


@PROMPT_ENCODER_REGISTRY.register()
class Florence2Encoder(LibraryEncoder):
    """The mean of the text tokens after the encoder's last layer: of `Florence2Model`'s encoder_last_hidden_state."""

    component = Component(
        name="florence2",
        prefixes=(("model.", "prompt_encoder."),),
        recognised_by="model.multi_modal_projector.image_position_embed.",
        layout="Florence-2",
        not_read=r"lm_head\.|model\.language_model\.decoder\.|.*\.embed_tokens\.",  # the last are those of `shared`
        hint="(openworldsam download florence2_base)",
    )
    config_class = "Florence2Config"
    tokenizer_class = "BartTokenizer"
    image_processor = "CLIPImageProcessor"
    template = "Locate {} in the image with mask"  # of the task <REFERRING_EXPRESSION_SEGMENTATION>

    def build(self, library: Any, config: Any) -> None:
        text, vision = config.text_config, config.vision_config
        text.decoder_layers = 0
        model = library.Florence2Model(config)
        self.vision_tower, self.multi_modal_projector = model.vision_tower, model.multi_modal_projector
        self.language_model = model.language_model
        del self.language_model.decoder, self.language_model.encoder.embed_tokens
        step = math.prod(vision.patch_stride)
        height, width = (math.ceil(side / step) for side in self.image_size)
        self.embed_dim, self.max_tokens = text.d_model, text.max_position_embeddings - (1 + height * width)

    @property
    def table(self) -> nn.Embedding:
        table: nn.Embedding = self.language_model.shared
        return table

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] as their mean and a grid of tokens, [B, T, D]."""
        tokens: Tensor = self.multi_modal_projector(self.vision_tower(images).last_hidden_state)
        return tokens

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        assert images is not None
        tokens, mask = torch.cat([images, self.table(ids)], dim=1), joint_mask(images, padding)
        last = self.language_model.encoder(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        text = last[:, images.shape[1] :]
        if padding is None:
            return text.mean(dim=1)
        return text.masked_fill(padding[..., None], 0).sum(dim=1) / (~padding).sum(dim=1, keepdim=True)
