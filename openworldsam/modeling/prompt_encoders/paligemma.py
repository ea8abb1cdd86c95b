"""PaliGemma as prompt encoder: a language model over image and text tokens (Table 10, in place of PaLI).

Shapes: B images, S side of the input, T image tokens (256), N prompts of a chunk, L text tokens, D width (2048).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.library import LibraryEncoder, joint_mask, last_tokens


@PROMPT_ENCODER_REGISTRY.register()
class PaliGemmaEncoder(LibraryEncoder):
    """The prefix's last token after the last layer, where an answer would begin: of `PaliGemmaModel`'s output."""

    component = Component(
        name="paligemma",
        prefixes=(
            ("vision_tower.vision_model.", "prompt_encoder.model.vision_tower."),
            ("language_model.model.", "prompt_encoder.model.language_model."),
            ("", "prompt_encoder.model."),
        ),
        recognised_by="multi_modal_projector.linear.",
        layout="PaliGemma",
        not_read=r"(language_model\.)?lm_head\.|.*\.position_ids",
        hint="(openworldsam download paligemma)",
    )
    config_class = "PaliGemmaConfig"
    tokenizer_class = "GemmaTokenizer"
    image_processor = "SiglipImageProcessor"
    template = "<bos>segment {}\n"
    adds_special_tokens = False

    def build(self, library: Any, config: Any) -> None:
        self.model, text = library.PaliGemmaModel(config), config.text_config
        self.embed_dim, self.max_tokens = text.hidden_size, text.max_position_embeddings - text.num_image_tokens

    @property
    def table(self) -> nn.Embedding:
        table: nn.Embedding = self.model.language_model.embed_tokens
        return table

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] as tokens [B, T, D]."""
        tokens: Tensor = self.model.get_image_features(images).pooler_output
        return tokens

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        assert images is not None
        tokens = torch.cat([images, self.table(ids)], dim=1)
        # the tokens of a prefix all see each other; without a mask attention would be causal
        mask = joint_mask(images, torch.zeros_like(ids, dtype=torch.bool) if padding is None else padding)
        places = torch.arange(1, 1 + tokens.shape[1], device=ids.device)[None]
        options = {"attention_mask": mask, "position_ids": places, "use_cache": False}
        return last_tokens(self.model.language_model(inputs_embeds=tokens, **options).last_hidden_state, padding)
