"""Tiny EVA-CLIP, whose image tower is not read and is a small ViT here, and CoCa."""

import json
from pathlib import Path

import open_clip
import torch
from case import Case
from safetensors.torch import save_file

PUBLIC = Path(open_clip.__file__).parent / "model_configs"
TEXT = {"vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 16, "width": 24, "head_width": 12, "layers": 1}


def eva_config():
    text = {**TEXT, "context_length": 77}
    return {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}


def coca_config():
    text = {**TEXT, "context_length": 76}
    return {
        "embed_dim": 32,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "attn_pooler_heads": 2},
        "custom_text": True,
    }


def model(config):
    config = {key: value for key, value in config.items() if key != "custom_text"}
    return (open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP)(**config).eval()


def writer(config):
    def write(folder):
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config(), "preprocess_cfg": {}}))
        state = {name: tensor.clone() for name, tensor in model(config()).state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")

    return write


def expected(folder, picture, text):
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    library = model(config)
    open_clip.load_checkpoint(library, str(folder / "open_clip_model.safetensors"))
    ids = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])([text])
    with torch.no_grad():
        return library.encode_text(ids, normalize=False)[0]


def sizes(name):
    def write_sizes(folder):
        public = json.loads((PUBLIC / f"{name}.json").read_text())
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": public, "preprocess_cfg": {}}))

    return write_sizes


FILES = {"config_file": "open_clip_config.json", "weights": "open_clip_model.safetensors"}
CASES = [
    Case("EVACLIPTextEncoder", "eva_clip", 32, writer(eva_config), "text.", expected, sizes("EVA02-L-14"), 77, **FILES),
    Case("CoCaTextEncoder", "coca", 32, writer(coca_config), "text.", expected, sizes("coca_ViT-L-14"), 76, **FILES),
]
