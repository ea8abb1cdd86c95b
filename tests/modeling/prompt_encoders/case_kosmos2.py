"""Tiny Kosmos-2."""

import string

import transformers
from case import Case, save_processor, save_random

LATENTS = 4
PIECES = ["\u2581", "\u2581cat", "\u2581dog", *string.ascii_lowercase]


def write(folder):
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [*((word, 0.0) for word in specials), *((piece, -2.0) for piece in PIECES), ("<mask>", 0.0)]
    tokenizer = transformers.XLMRobertaTokenizer(vocab=vocabulary)
    processor(transformers.CLIPImageProcessor(), tokenizer).tokenizer.save_pretrained(folder)
    text = {"embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2, "max_position_embeddings": 64}
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    text["vocab_size"] = len(tokenizer)
    config = transformers.Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=LATENTS)
    save_random(transformers.Kosmos2ForConditionalGeneration(config), folder)
    save_images(folder, 28)


def processor(images, tokenizer):
    return transformers.Kosmos2Processor(images, tokenizer, num_patch_index_tokens=4)


def save_images(folder, side):
    switches = dict.fromkeys(("do_resize", "do_center_crop", "do_normalize"), True)
    numbers = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    size = {"height": side, "width": side}
    save_processor(folder, **switches, **numbers, resample=3, size=size, crop_size=size)


def write_sizes(folder):
    """The public model, whose sizes are the library's defaults."""
    transformers.Kosmos2Config().save_pretrained(folder)
    save_images(folder, 224)


def expected(folder, picture, text):
    images = transformers.CLIPImageProcessor.from_pretrained(folder)
    tokenizer = transformers.XLMRobertaTokenizer.from_pretrained(folder)
    task = {"text": f"<grounding><phrase> {text}</phrase>", "num_image_tokens": LATENTS}
    inputs = processor(images, tokenizer)(images=picture, **task, return_tensors="pt")
    return transformers.Kosmos2Model.from_pretrained(folder).eval()(**inputs).last_hidden_state[0, -1]


CASES = [Case("Kosmos2Encoder", "kosmos2", 32, write, "text_model.", expected, write_sizes, reads_image=True)]
