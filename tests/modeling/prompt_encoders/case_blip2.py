"""Tiny BLIP-2."""

import string

import transformers
from case import Case, save_processor, save_random

LETTERS = string.ascii_lowercase
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
QUERIES = 4


def write(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {**layers, "hidden_size": 32, "vocab_size": len(WORDS), "max_position_embeddings": 64}
    vision = {**layers, "hidden_size": 24, "image_size": 28, "patch_size": 14}
    save_random(transformers.Blip2ForImageTextRetrieval(config(text, vision, num_query_tokens=QUERIES)), folder)
    save_images(folder, 28)


def config(text, vision, **sizes):
    text["use_qformer_text_input"] = True
    return transformers.Blip2Config(qformer_config=text, vision_config=vision, **sizes)


def save_images(folder, side):
    switches = {"do_resize": True, "do_normalize": True, "resample": 3, "size": {"height": side, "width": side}}
    numbers = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    save_processor(folder, **switches, **numbers)


def write_sizes(folder):
    """BLIP-2 with ViT-g, whose other sizes are the library's defaults."""
    config({"vocab_size": 30523}, {}).save_pretrained(folder)
    save_images(folder, 224)


def expected(folder, picture, text):
    tokens = transformers.BertTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    pixels = transformers.BlipImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
    model = transformers.Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    found = model(**pixels, **inputs, use_image_text_matching_head=True)
    return found.text_model_output.last_hidden_state[0, :QUERIES].mean(dim=0)


CASES = [Case("BLIP2Encoder", "blip2", 32, write, "qformer.encoder.", expected, write_sizes, reads_image=True)]
