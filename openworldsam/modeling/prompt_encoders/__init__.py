"""Frozen encoders that turn a text, together with its image, into one vector."""

from openworldsam.modeling.prompt_encoders.base import (
    PROMPT_ENCODER_REGISTRY,
    PromptEncoder,
    build_prompt_encoder,
)
from openworldsam.modeling.prompt_encoders.beit3 import BEiT3PromptEncoder
from openworldsam.modeling.prompt_encoders.cached import CachedPromptEncoder
from openworldsam.modeling.prompt_encoders.tokenizer import BEiT3Tokenizer, check_prompts

__all__ = [
    "PROMPT_ENCODER_REGISTRY",
    "BEiT3PromptEncoder",
    "BEiT3Tokenizer",
    "CachedPromptEncoder",
    "PromptEncoder",
    "build_prompt_encoder",
    "check_prompts",
]
