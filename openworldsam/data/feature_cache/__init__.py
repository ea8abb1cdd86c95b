"""Cache of the frozen encoders' output, which is constant per image and prompt if images are not augmented.

A cache is a folder:

    header.json               its origin: weights, settings, number format
    shard-NAME.safetensors    prompt_embeddings [prompts, D]; with image features also i.image_embed [C, S, S] and
                              i.high_res_0 [C/8, 4S, 4S], i.high_res_1 [C/4, 2S, 2S] of the i-th image
    shard-NAME.json           index of the shard: its size and CRC-32, and the id, file, size, CRC-32 and prompts of
                              each image; with a CRC-32 of the index itself

One process writes a shard, and its index once the shard is complete. The cache is the union of all shards that have an
index, whoever wrote them and in whatever order.

Size, with b bytes per number (2 for bf16 and fp16, 4 for fp32): D * b per prompt (2 KiB for D = 1024 in bf16), and with
image features 4 * C * S * S * b per image (8 MiB at 1024 pixels in bf16). The embedding of the image alone would not
do: the mask decoder needs the high-res levels, which only the whole encoder gives. Indices add about 110 bytes per
image and the text of each prompt.

Shapes: P prompts of an image, D width of a prompt embedding, C channels and S side of the image features.
"""

from openworldsam.data.feature_cache.header import IMAGE_FEATURES, CacheHeader, tokenizer_fingerprint
from openworldsam.data.feature_cache.index import ImageEntry, ImageStamp
from openworldsam.data.feature_cache.reader import FeatureCache
from openworldsam.data.feature_cache.writer import CachedImage, FeatureCacheWriter

__all__ = [
    "IMAGE_FEATURES",
    "CacheHeader",
    "CachedImage",
    "FeatureCache",
    "FeatureCacheWriter",
    "ImageEntry",
    "ImageStamp",
    "tokenizer_fingerprint",
]
