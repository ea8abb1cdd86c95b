"""Tiny PaliGemma."""

import string

import transformers
from case import Case, save_processor, save_random

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", "\n", *string.ascii_lowercase]


def write(folder):
    tokenizer = transformers.GemmaTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    tokenizer.save_pretrained(folder)
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    text = {**layers, "model_type": "gemma", "hidden_size": 32, "num_key_value_heads": 1, "head_dim": 16}
    text |= {"vocab_size": len(WORDS) + 1, "max_position_embeddings": 64}
    vision = {**layers, "model_type": "siglip_vision_model", "hidden_size": 24, "image_size": 28, "patch_size": 14}
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config={**vision, "vision_use_head": False},
        image_token_index=len(WORDS),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(WORDS) + 1,
    )
    save_random(transformers.PaliGemmaForConditionalGeneration(config), folder)
    save_images(folder, 28)


def save_images(folder, side):
    switches = {"do_resize": True, "do_normalize": True, "resample": 3, "size": {"height": side, "width": side}}
    save_processor(folder, **switches, image_mean=[0.5] * 3, image_std=[0.5] * 3, image_seq_length=(side // 14) ** 2)


def write_sizes(folder):
    """PaliGemma 3B at 224 pixels."""
    text = {"model_type": "gemma", "hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 16384}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 257_216}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27, "patch_size": 14}
    vision |= {"num_attention_heads": 16, "intermediate_size": 4304, "image_size": 224, "vision_use_head": False}
    transformers.PaliGemmaConfig(text_config=text, vision_config=vision).save_pretrained(folder)
    save_images(folder, 224)


def expected(folder, picture, text):
    images = transformers.SiglipImageProcessor.from_pretrained(folder)
    tokenizer = transformers.GemmaTokenizer.from_pretrained(folder)
    processor = transformers.PaliGemmaProcessor(images, tokenizer)
    inputs = processor(images=picture, text=f"<image>segment {text}", return_tensors="pt")
    inputs.pop("labels")
    return transformers.PaliGemmaModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0, -1]


CASES = [Case("PaliGemmaEncoder", "paligemma", 32, write, "language_model.", expected, write_sizes, reads_image=True)]
