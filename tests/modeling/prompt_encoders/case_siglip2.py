"""Tiny SigLIP 2: the text alone."""

import json

import transformers
from case import Case
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors


def save_tokenizer(folder):
    """Write a Gemma tokenizer of single letters and a few pairs; returns its size."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz", "ca", "cat", "do", "dog"]
    merges = [("c", "a"), ("ca", "t"), ("d", "o"), ("do", "g")]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.add_special_tokens(words[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"padding_side": "right", "model_max_length": 64}))
    return len(words)


def write(folder):
    size = save_tokenizer(folder)
    layers = {"hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layers, "vocab_size": size, "max_position_embeddings": 40, "projection_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config={**layers, "image_size": 32})
    transformers.SiglipModel(config).save_pretrained(folder)


def write_sizes(folder):
    """base-patch16-224."""
    transformers.SiglipConfig(text_config={"vocab_size": 256_000}, vision_config={}).save_pretrained(folder)


def expected(folder, picture, text):
    tokenizer = transformers.Siglip2Tokenizer.from_pretrained(folder)
    ids = tokenizer([text], padding="max_length", max_length=40, return_tensors="pt").input_ids
    return transformers.SiglipModel.from_pretrained(folder).eval().get_text_features(ids).pooler_output[0]


CASES = [Case("SigLIP2TextEncoder", "siglip2", 32, write, "text_model.", expected, write_sizes, tokens=64)]
