"""Text towers of open_clip as prompt encoders: EVA-CLIP and CoCa (Table 10). The image is not read.

Their folder has open_clip_config.json and the weights; the tokenizer is part of the library. The towers are built
without the image's, for which EVA-CLIP would need a newer timm.

Shapes: N prompts of a chunk, L text tokens (77, CoCa 76), D width of the shared space.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.library import LibraryEncoder, import_library


def _component(name: str) -> Component:
    return Component(
        name=name,
        prefixes=(("text.", "prompt_encoder.text."),),
        recognised_by="text.transformer.",
        layout="open_clip",
        not_read=r"visual\.|text_decoder\.|logit_|text\.attn_mask",
        hint=f"(openworldsam download {name})",
    )


def _fp32() -> torch.dtype:
    return torch.float32


class OpenCLIPTextEncoder(LibraryEncoder):
    """The library's `encode_text`: the token that the tower pools after the last layer, projected."""

    library = "open_clip"
    config_file = "open_clip_config.json"
    padded = True

    def read_config(self, library: Any, content: dict[str, Any]) -> Any:
        config = content["model_cfg"]
        if {"hf_model_name", "hf_tokenizer_name"} & config["text_cfg"].keys():
            raise ValueError("its text tower or tokenizer is of another library")
        return config

    def build(self, library: Any, config: Any) -> None:
        text = library.CLIPTextCfg(**{**config["text_cfg"], "output_tokens": False})
        self.text = library.model._build_text_tower(config["embed_dim"], text, config.get("quick_gelu", False))
        # else that of its weights, which may be stored in half precision: autocast alone chooses what is rounded
        self.text.transformer.get_cast_dtype = _fp32
        self.embed_dim, self.max_tokens = config["embed_dim"], text.context_length

    @property
    def table(self) -> nn.Embedding:
        return self.text.token_embedding

    @cached_property
    def tokenizer(self) -> Any:
        return import_library("open_clip").SimpleTokenizer()

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        start, end = self.tokenizer.all_special_ids
        return [[start, *self.tokenizer.encode(text), end] for text in texts]

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        with torch.device(ids.device):  # where the library makes an index
            return self.text(ids)


@PROMPT_ENCODER_REGISTRY.register()
class EVACLIPTextEncoder(OpenCLIPTextEncoder):
    """EVA-CLIP: the text's end token."""

    component = _component("eva_clip")


@PROMPT_ENCODER_REGISTRY.register()
class CoCaTextEncoder(OpenCLIPTextEncoder):
    """CoCa: the [CLS] token of the unimodal text decoder, which no image enters."""

    component = _component("coca")
