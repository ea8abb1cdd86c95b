"""Tiny ViLT."""

import string

import torch
import transformers
from case import Case, save_processor

LETTERS = string.ascii_lowercase
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def write(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    layers = {"hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"vocab_size": len(WORDS), "image_size": 48, "patch_size": 4, "max_position_embeddings": 40}
    model = transformers.ViltForMaskedLM(transformers.ViltConfig(**layers, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # positions begin as zeros
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save(folder, 48, 4)


def save(folder, side, step):
    numbers = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": side, "size_divisor": step}
    save_processor(folder, do_normalize=True, do_resize=True, **numbers)


def write_sizes(folder):
    """ViLT-B/32, whose sizes are the library's defaults."""
    transformers.ViltConfig().save_pretrained(folder)
    save(folder, 384, 32)


def expected(folder, picture, text):
    tokens = transformers.BertTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    pixels = transformers.ViltImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
    model = transformers.ViltModel.from_pretrained(folder).eval()
    return model(**tokens, **pixels).pooler_output[0]


CASES = [Case("ViltEncoder", "vilt", 24, write, "vilt.encoder.", expected, write_sizes, reads_image=True)]
