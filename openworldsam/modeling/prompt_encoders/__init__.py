"""Frozen encoders that turn a text, together with its image, into one vector.

To add one: a module here that declares it (`base.PromptEncoder`), its import below, and a YAML that names it.
"""

from openworldsam.modeling.prompt_encoders.base import (
    PROMPT_ENCODER_REGISTRY,
    PromptEncoder,
    build_prompt_encoder,
    check_prompts,
    clean_prompts,
    prompt_encoder_class,
)
from openworldsam.modeling.prompt_encoders.beit3 import BEiT3PromptEncoder
from openworldsam.modeling.prompt_encoders.blip2 import BLIP2Encoder
from openworldsam.modeling.prompt_encoders.cached import CachedPromptEncoder
from openworldsam.modeling.prompt_encoders.clip_late_fusion import CLIPLateFusionEncoder
from openworldsam.modeling.prompt_encoders.clip_text import CLIPTextEncoder
from openworldsam.modeling.prompt_encoders.florence2 import Florence2Encoder
from openworldsam.modeling.prompt_encoders.kosmos2 import Kosmos2Encoder
from openworldsam.modeling.prompt_encoders.open_clip_text import CoCaTextEncoder, EVACLIPTextEncoder
from openworldsam.modeling.prompt_encoders.paligemma import PaliGemmaEncoder
from openworldsam.modeling.prompt_encoders.siglip2 import SigLIP2TextEncoder
from openworldsam.modeling.prompt_encoders.vilt import ViltEncoder
from openworldsam.modeling.prompt_encoders.zero import ZeroPromptEncoder

__all__ = [
    "PROMPT_ENCODER_REGISTRY",
    "BEiT3PromptEncoder",
    "BLIP2Encoder",
    "CLIPLateFusionEncoder",
    "CLIPTextEncoder",
    "CachedPromptEncoder",
    "CoCaTextEncoder",
    "EVACLIPTextEncoder",
    "Florence2Encoder",
    "Kosmos2Encoder",
    "PaliGemmaEncoder",
    "PromptEncoder",
    "SigLIP2TextEncoder",
    "ViltEncoder",
    "ZeroPromptEncoder",
    "build_prompt_encoder",
    "check_prompts",
    "clean_prompts",
    "prompt_encoder_class",
]
