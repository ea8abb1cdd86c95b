"""BLIP-2's Q-Former as prompt encoder: learned queries that read the image and the text (Table 10).

Shapes: B images, S side of the input, V image tokens, C their width, Q queries (32), N prompts of a chunk, L text
tokens, D width (768).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.library import LibraryEncoder, joint_mask


@PROMPT_ENCODER_REGISTRY.register()
class BLIP2Encoder(LibraryEncoder):
    """The mean of the queries after the last layer: what image-text matching reads in `Blip2ForImageTextRetrieval`."""

    component = Component(
        name="blip2",
        prefixes=(("", "prompt_encoder."),),
        recognised_by="qformer.",
        layout="BLIP-2",
        not_read=r"itm_head\.|text_projection\.|vision_projection\.|.*\.position_ids",
        hint="(openworldsam download blip2)",
    )
    config_class = "Blip2Config"
    tokenizer_class = "BertTokenizer"
    image_processor = "BlipImageProcessor"

    def build(self, library: Any, config: Any) -> None:
        model = library.Blip2ForImageTextRetrieval(config)
        self.vision_model, self.query_tokens = model.vision_model, model.query_tokens
        self.embeddings, self.qformer = model.embeddings, model.qformer
        text = config.qformer_config
        self.embed_dim, self.max_tokens = text.hidden_size, text.max_position_embeddings

    @property
    def table(self) -> nn.Embedding:
        table: nn.Embedding = self.embeddings.word_embeddings
        return table

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] as tokens [B, V, C]."""
        vision, embeddings = self.vision_model, self.vision_model.embeddings
        patches = embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
        # the library would round these sums too where the weights of the patches are stored in half precision
        tokens = torch.cat([embeddings.class_embedding.expand(len(images), -1, -1), patches], dim=1)
        last = vision.encoder(inputs_embeds=tokens + embeddings.position_embedding).last_hidden_state
        encoded: Tensor = vision.post_layernorm(last)
        return encoded

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        queries = self.query_tokens.expand(len(ids), -1, -1)
        tokens, number = self.embeddings(input_ids=ids, query_embeds=queries), queries.shape[1]
        mask = joint_mask(queries, padding)
        last = self.qformer(tokens, query_length=number, attention_mask=mask, encoder_hidden_states=images)
        vector: Tensor = last.last_hidden_state[:, :number].mean(dim=1)
        return vector
