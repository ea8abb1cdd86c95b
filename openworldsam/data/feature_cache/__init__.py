"""What the frozen encoders compute, kept on the disk: constant per image and prompt as long as nothing is augmented.

A cache is a folder:

    header.json               what made it: weights, settings, number format
    shard-NAME.safetensors    prompt_embeddings [rows, D]; with image features also i.image_embed [C, S, S] and
                              i.high_res_0 [C/8, 4S, 4S], i.high_res_1 [C/4, 2S, 2S] of the i-th image
    shard-NAME.json           index of the shard: its size and CRC-32, and for each image its id, file, size, CRC-32
                              and prompts; with a CRC-32 of its own

An index is written when its shard is complete, by one process, so the cache is the union of the shards that have an
index, whoever made them and in whatever order.

Size, with b bytes per number (2 for bf16 and fp16, 4 for fp32): D * b per prompt (2 KiB for BEiT-3-L in bf16), and with
image features 4 * C * S * S * b per image (8 MiB at 1024 pixels in bf16). The embedding alone would not do: the mask
decoder needs the high-res levels, which only the whole encoder gives. Indices add about 110 bytes per image and the
text of each prompt.

Shapes: P prompts of an image, D width of a prompt embedding, C channels and S side of the image features.
"""

from openworldsam.data.feature_cache.header import (
    DTYPES,
    IMAGE_FEATURES,
    CacheHeader,
    read_header,
    tokenizer_fingerprint,
)
from openworldsam.data.feature_cache.index import ImageEntry, ImageId, Picture
from openworldsam.data.feature_cache.reader import FeatureCache
from openworldsam.data.feature_cache.writer import CachedImage, FeatureCacheWriter

__all__ = [
    "DTYPES",
    "IMAGE_FEATURES",
    "CacheHeader",
    "CachedImage",
    "FeatureCache",
    "FeatureCacheWriter",
    "ImageEntry",
    "ImageId",
    "Picture",
    "read_header",
    "tokenizer_fingerprint",
]
