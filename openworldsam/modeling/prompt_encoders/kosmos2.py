"""Kosmos-2 as prompt encoder: a decoder that reads the image, then the prompt, and is about to name a place (Table 10).

Shapes: B images, S side of the input, T image tokens (64), N prompts of a chunk, L text tokens, D width (2048).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.library import LibraryEncoder, last_tokens


@PROMPT_ENCODER_REGISTRY.register()
class Kosmos2Encoder(LibraryEncoder):
    """The text's last token after the last layer, one decoding step: of `Kosmos2Model`'s last_hidden_state."""

    component = Component(
        name="kosmos2",
        prefixes=(("", "prompt_encoder.model."),),
        recognised_by="image_to_text_projection.",
        layout="Kosmos-2",
        not_read=r"text_model\.lm_head\.|.*\.position_ids|.*\.embed_positions\.",
        hint="(openworldsam download kosmos2)",
    )
    config_class = "Kosmos2Config"
    tokenizer_class = "XLMRobertaTokenizer"
    image_processor = "CLIPImageProcessor"
    template = "<s><image></image><grounding><phrase> {}</phrase>"  # phrase grounding
    adds_special_tokens = False

    def build(self, library: Any, config: Any) -> None:
        self.model, text = library.Kosmos2Model(config), config.text_config
        self.embed_dim, self.max_tokens = text.embed_dim, text.max_position_embeddings - config.latent_query_num

    @property
    def table(self) -> nn.Embedding:
        table: nn.Embedding = self.model.text_model.model.embed_tokens
        return table

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] as tokens [B, T, D]."""
        tokens: Tensor = self.model.get_image_features(images).pooler_output
        return tokens

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        assert images is not None
        words = self.table(ids)
        tokens = torch.cat([words[:, :2], images, words[:, 2:]], dim=1)  # after <s> and <image>
        last = self.model.text_model(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return last_tokens(last, padding)  # attention is causal, so they see no padding
