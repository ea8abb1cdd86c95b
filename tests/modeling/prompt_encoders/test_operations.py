"""The public models at full size, without weights: docs/encoders.md has their counted parameters and operations."""

import torch
from case import ROOT
from torch.utils.flop_counter import FlopCounterMode

from openworldsam.config import load_config
from openworldsam.modeling.prompt_encoders import build_prompt_encoder
from openworldsam.modeling.prompt_encoders.beit3 import embed_images, first_token


def count(call):
    """Operations in billions, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = call()
    return result, counter.get_total_flops() / 1e9


def assert_in_docs(name, encoder, width, of_image, of_prompt):
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    numbers = [str(width), f"{millions:,.1f} M", f"{of_image:,.1f}", f"{of_prompt:,.1f}"]
    rows = (ROOT / "docs/encoders.md").read_text().splitlines()
    cells = [[cell.strip() for cell in row.split("|")] for row in rows if f"| {name} |" in row]
    assert any(set(numbers) <= set(row) for row in cells), f"| {name} | {' | '.join(numbers)} |"


def test_the_docs_have_the_numbers_of_beit3():
    with torch.device("meta"):
        encoder = build_prompt_encoder(load_config(ROOT / "configs/presets/paper.yaml")).requires_grad_(False)
        vision, of_image = count(lambda: embed_images(encoder.beit3, torch.zeros(1, 3, 224, 224)))
        ids = torch.full((1, 8), 5)
        vector, of_prompt = count(lambda: first_token(encoder.beit3, vision, ids, None))
    assert_in_docs("the default", encoder, vector.shape[1], of_image, of_prompt)


def test_the_docs_have_its_numbers(case, tmp_path):
    case.write_sizes(tmp_path)
    path = ROOT / f"configs/encoders/{case.config}.yaml"
    cfg = load_config(path, ["MODEL.PROMPT_ENCODER.TOKENIZER", str(tmp_path)])
    with torch.device("meta"):
        encoder = build_prompt_encoder(cfg).requires_grad_(False)
        picture = encoder.preprocess(torch.zeros(3, 480, 640, dtype=torch.uint8))
        images, of_image = count(lambda: encoder.encode_images(picture[None]))
        ids = torch.zeros(1, case.tokens, dtype=torch.long)
        vector, of_prompt = count(lambda: encoder.encode_texts(images, ids, None))
    assert vector.shape == (1, cfg.MODEL.PROMPT_ENCODER.EMBED_DIM)
    assert_in_docs(f"`{case.config}`", encoder, vector.shape[1], of_image, of_prompt)
