"""Tiny CLIP: the text alone, and late fusion."""

import torch
import transformers
from case import Case, save_byte_pairs, save_processor


def save_images(folder, side):
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    switches = dict.fromkeys(("do_resize", "do_center_crop", "do_normalize"), True)
    save_processor(folder, **switches, crop_size=side, size=side, resample=3, image_mean=mean, image_std=std)


def write(folder):
    size = save_byte_pairs(folder)
    layers = {"hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": size - 2, "eos_token_id": 2}  # the public config has this wrong id
    text = {**layers, **ends, "vocab_size": size, "max_position_embeddings": 32}
    vision = {**layers, "hidden_size": 48, "image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    transformers.CLIPModel(config).save_pretrained(folder)
    save_images(folder, 24)


def write_sizes(folder):
    """ViT-L/14."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision["patch_size"] = 14
    transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=768).save_pretrained(folder)
    save_images(folder, 224)


def model(folder):
    return transformers.CLIPModel.from_pretrained(folder).eval()


def text_vector(folder, picture, text):
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    return model(folder).get_text_features(**tokens).pooler_output[0]


def both_vectors(folder, picture, text):
    pixels = transformers.CLIPImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
    image = model(folder).get_image_features(**pixels).pooler_output[0]
    return torch.cat([text_vector(folder, picture, text), image])


CASES = [
    Case("CLIPTextEncoder", "clip_text", 32, write, "text_model.", text_vector, write_sizes),
    Case(
        "CLIPLateFusionEncoder",
        "clip_late_fusion",
        64,
        write,
        "vision_model.",
        both_vectors,
        write_sizes,
        reads_image=True,
    ),
]
