"""The full-size model, weights made by rule: memory bounds, and an image through the demo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openworldsam.parity.rule_weights import save_tokenizer

ROOT = Path(__file__).parents[1]
GIB = 2**30

DECODE = """
import resource, sys, torch
from openworldsam.modeling import DecoderTokens, ImageFeatures, SAM2MaskDecoder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(2)
num_images, num_rows, num_tokens = map(int, sys.argv[1:])
decoder = SAM2MaskDecoder().eval()
maps = [torch.randn(num_images, c, s, s) for c, s in ((256, 64), (32, 256), (64, 128))]
features = ImageFeatures(maps[0], (maps[1], maps[2]))
image_index = torch.arange(num_images).repeat_interleave(num_tokens // num_images)
shared = torch.randn(num_tokens, 256) if num_images == 1 else None
queries = torch.randn(num_tokens, 256)
tokens = DecoderTokens(queries, queries, image_index, image_index, shared)
before = peak()
with torch.no_grad():
    decoder(features, tokens, torch.linspace(0, num_tokens - 1, num_rows).long())
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_images", "num_rows", "num_tokens"),
    [pytest.param(4, 64, 64, id="four images in a chunk"), pytest.param(1, 14, 2660, id="broadcast of 133 prompts")],
)
def test_decoding_stays_below_2_gib(num_images, num_rows, num_tokens):
    arguments = map(str, (num_images, num_rows, num_tokens))
    done = subprocess.run([sys.executable, "-c", DECODE, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 2 * GIB


STREAM = """
import resource, sys, torch
from openworldsam.config import load_config
from openworldsam.modeling import OpenWorldSAM

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
size, width, tokenizer = ["MODEL.SAM2.IMAGE_SIZE", 1024], ["MODEL.SAM2.WIDTH", 256], sys.argv[1]
queries = ["MODEL.ADAPTER.NUM_TIE_BREAKERS", 20]
cfg = load_config("configs/tiny.yaml", [*size, *width, *queries, "MODEL.PROMPT_ENCODER.TOKENIZER", tokenizer])
model = OpenWorldSAM(cfg).eval()
decode, queries_of_chunks = model.mask_decoder.forward, []

def decode_last(features, tokens):
    queries_of_chunks.append(len(tokens.image_index))
    if sum(queries_of_chunks) == 847 * 20:
        return decode(features, tokens)
    count = queries_of_chunks[-1]
    return torch.randn(count, 256, 256), torch.rand(count)

model.mask_decoder.forward = decode_last
picture = torch.randint(0, 256, (3, 1024, 2048), dtype=torch.uint8)
inputs = {"image": picture, "height": 1024, "width": 2048, "prompts": [f"class {c}" for c in range(847)]}
before = peak()
labels = model([inputs], tasks=("semantic",), prompt_chunk=cfg.TEST.PROMPT_CHUNK)[0]["semantic"]
print(len(queries_of_chunks), labels.unique().numel(), peak() - before)
"""


@pytest.mark.slow
def test_847_classes_of_a_large_image_stay_below_2_gib(tmp_path):
    """The decoder, the masks and the image have full size; of 27 chunks the last is decoded, the others have its shape.

    The encoders are tiny: theirs is no memory that grows with the vocabulary, prompts go through in chunks.
    """
    save_tokenizer(tmp_path / "beit3.spm")
    arguments = [sys.executable, "-c", STREAM, tmp_path / "beit3.spm"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    chunks, labels, memory = map(int, done.stdout.split()[-3:])
    assert chunks == 27 and labels > 100
    assert memory < 2 * GIB


@pytest.mark.slow
def test_a_photograph_goes_through_the_demo_within_8_gb(tmp_path, photograph):
    config = ["--config-file", str(ROOT / "configs/presets/released.yaml")]
    subprocess.run(
        [sys.executable, ROOT / "tools/make_rule_weights.py", *config, "--output", tmp_path], check=True, cwd=ROOT
    )
    demo = subprocess.Popen(
        [sys.executable, ROOT / "tools/demo.py", *config, "--input", photograph, "--prompts", "cat", "grass", "an eye",
         "--task", "all", "--device", "cpu", "--output", tmp_path / "out", "--opts",
         "MODEL.WEIGHTS", tmp_path / "model_final.pth", "MODEL.PROMPT_ENCODER.TOKENIZER", tmp_path / "beit3.spm"]
    )  # fmt: skip
    _, status, usage = os.wait4(demo.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert usage.ru_maxrss * 1024 < 8e9
    tasks = ("semantic", "instance", "panoptic", "referring")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "chelsea_sheet.png", *(f"chelsea_{t}.{s}" for t in tasks for s in ("png", "json")),
    }  # fmt: skip
