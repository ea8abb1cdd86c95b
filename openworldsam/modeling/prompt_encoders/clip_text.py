"""CLIP's text tower as prompt encoder: the text's vector in the space that texts and images share (Table 4, row 1).

The image is not read. Shapes: N prompts of a chunk, L text tokens, D width of the shared space, 768 for ViT-L/14.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.library import LibraryEncoder


@PROMPT_ENCODER_REGISTRY.register()
class CLIPTextEncoder(LibraryEncoder):
    """The text's end token after the last layer, projected: `CLIPModel.get_text_features`."""

    component = Component(
        name="clip_text",
        prefixes=(("", "prompt_encoder."),),
        recognised_by="text_projection.",
        layout="CLIP",
        not_read=r"logit_scale|vision_model\.|visual_projection\.|.*\.position_ids",
        hint="(openworldsam download clip_large)",
    )
    paper_row = "CLIP-Large, text"
    paper_sizes: ClassVar = {"EMBED_DIM": 768}
    config_class = "CLIPConfig"
    tokenizer_class = "CLIPTokenizer"

    def build(self, library: Any, config: Any) -> None:
        text = config.text_config
        self.text_model = library.CLIPTextModel(text)
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        self.embed_dim, self.max_tokens = config.projection_dim, text.max_position_embeddings

    @property
    def table(self) -> nn.Embedding:
        return self.text_model.embeddings.token_embedding

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        # attention is causal, so the end token sees no padding
        return self.text_projection(self.text_model(ids).pooler_output)
