"""The model: image encoder, prompt encoders, adapter, mask decoder, matcher and criterion."""

from openworldsam.modeling.adapter import Adapter, DecoderTokens
from openworldsam.modeling.criterion import Criterion
from openworldsam.modeling.image_encoder import ImageFeatures, SAM2ImageEncoder
from openworldsam.modeling.mask_decoder import SAM2MaskDecoder
from openworldsam.modeling.openworldsam import OpenWorldSAM
from openworldsam.modeling.prompt_encoders import PROMPT_ENCODER_REGISTRY, PromptEncoder

__all__ = [
    "PROMPT_ENCODER_REGISTRY",
    "Adapter",
    "Criterion",
    "DecoderTokens",
    "ImageFeatures",
    "OpenWorldSAM",
    "PromptEncoder",
    "SAM2ImageEncoder",
    "SAM2MaskDecoder",
]
