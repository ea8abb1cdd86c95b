"""Tiny Florence-2."""

import json

import transformers
from case import Case, save_processor, save_random
from transformers.convert_slow_tokenizer import bytes_to_unicode

PIECES = [*bytes_to_unicode().values(), "ca", "cat", "do", "dog"]
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *PIECES]


def write(folder):
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t\nd o\ndo g\n")
    sizes = {"d_model": 32, "vocab_size": len(WORDS) + 1, "max_position_embeddings": 128}
    sizes |= {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")}
    stages = {"depths": (1, 1), "embed_dim": (8, 16), "num_heads": (2, 2), "num_groups": (2, 2), "window_size": 3}
    patches = {"patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1), "patch_prenorm": (False, True)}
    vision = {**stages, **patches, "projection_dim": 32, "max_position_embeddings": 8}
    config = transformers.Florence2Config(text_config=sizes, vision_config=vision, image_token_id=len(WORDS))
    save_random(transformers.Florence2ForConditionalGeneration(config), folder)
    save_images(folder, 36)


def save_images(folder, side):
    switches = {"do_resize": True, "do_center_crop": False, "do_normalize": True, "resample": 3}
    numbers = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    size = {"height": side, "width": side}
    save_processor(folder, **switches, **numbers, size=size, crop_size=size)


def write_sizes(folder):
    """Florence-2 base, whose image encoder has the library's default sizes."""
    text = {"d_model": 768, "encoder_layers": 6, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072}
    text |= {"vocab_size": 51290, "max_position_embeddings": 1024}
    transformers.Florence2Config(text_config=text, vision_config={"projection_dim": 768}).save_pretrained(folder)
    save_images(folder, 768)


def expected(folder, picture, text):
    extra = {"image_token": "<image>"}
    tokenizer = transformers.BartTokenizer.from_pretrained(folder, extra_special_tokens=extra)
    images = transformers.CLIPImageProcessor.from_pretrained(folder)
    images.image_seq_length = 1 + 5 * 5
    processor = transformers.Florence2Processor(images, tokenizer)
    inputs = processor(images=picture, text=f"<REFERRING_EXPRESSION_SEGMENTATION>{text}", return_tensors="pt")
    model = transformers.Florence2Model.from_pretrained(folder).eval()
    return model(**inputs).encoder_last_hidden_state[0, images.image_seq_length :].mean(dim=0)


CASES = [
    Case(
        "Florence2Encoder",
        "florence2",
        32,
        write,
        "model.language_model.encoder.",
        expected,
        write_sizes,
        reads_image=True,
    )
]
