"""SigLIP 2's text tower as prompt encoder (Table 10). The image is not read.

These are the models of fixed input size; their config.json says "siglip". NaFlex differs in the image tower.

Shapes: N prompts of a chunk, L = 64 text tokens, D width of the shared space.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.library import LibraryEncoder


@PROMPT_ENCODER_REGISTRY.register()
class SigLIP2TextEncoder(LibraryEncoder):
    """The last of the text's 64 tokens, padding included, after the last layer, projected: `get_text_features`."""

    component = Component(
        name="siglip2",
        prefixes=(("", "prompt_encoder."),),
        recognised_by="text_model.head.",
        layout="SigLIP",
        not_read=r"logit_|vision_model\.|.*\.position_ids",
        hint="(openworldsam download siglip2_base)",
    )
    config_class = "SiglipConfig"
    tokenizer_class = "Siglip2Tokenizer"
    padded = True

    def build(self, library: Any, config: Any) -> None:
        text = config.text_config
        self.text_model = library.SiglipTextModel(text)
        self.embed_dim, self.max_tokens = text.projection_size, text.max_position_embeddings

    @property
    def table(self) -> nn.Embedding:
        return self.text_model.embeddings.token_embedding

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        return self.text_model(ids).pooler_output
