"""The public models at full size, without weights: docs/encoders.md has their counted parameters and operations."""

import torch
from case import ROOT
from torch.utils.flop_counter import FlopCounterMode

from openworldsam.config import load_config
from openworldsam.modeling.prompt_encoders import build_prompt_encoder


def count(call):
    """Operations in billions, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = call()
    return result, counter.get_total_flops() / 1e9


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
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    numbers = [str(vector.shape[1]), f"{millions:,.1f} M", f"{of_image:,.1f}", f"{of_prompt:,.1f}"]
    rows = (ROOT / "docs/encoders.md").read_text().splitlines()
    cells = [[cell.strip() for cell in row.split("|")] for row in rows if f"| `{case.config}` |" in row]
    assert any(set(numbers) <= set(row) for row in cells), f"| `{case.config}` | {' | '.join(numbers)} |"
