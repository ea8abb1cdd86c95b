"""A prompt encoder of a library as the shared tests see it, and the tiny folders that several have in common."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
transformers, open_clip = (
    pytest.importorskip(name, reason="needs pip install -e '.[encoders]'") for name in ("transformers", "open_clip")
)


@dataclass(frozen=True)
class Case:
    """An encoder and the library's own forward pass.

    name: in the registry.
    config: YAML in configs/encoders/, without its suffix.
    width: D of the tiny model.
    write: fills a folder as the authors publish theirs, with a tiny random model.
    needed: prefix of tensors in the weight file that the encoder reads.
    expected: the library's vector [D] for a folder, a picture (uint8 [3, H, W]) and a text, one at a time.
    write_sizes: fills a folder with the public model's files that give its sizes.
    tokens: of a prompt whose operations are counted.
    reads_image: whether the vector depends on the picture.
    config_file: the file in the folder that holds the sizes.
    weights: the weight file in the folder.
    """

    name: str
    config: str
    width: int
    write: Callable[[Path], None]
    needed: str
    expected: Callable[[Path, torch.Tensor, str], torch.Tensor]
    write_sizes: Callable[[Path], None]
    tokens: int = 8
    reads_image: bool = False
    config_file: str = "config.json"
    weights: str = "model.safetensors"


def save_random(model, folder):
    """Write a model whose parameters are all random; those that begin as zeros or ones would hide differences."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)


def save_processor(folder, **values):
    """Write the preprocessor_config.json of public folders."""
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def save_byte_pairs(folder):
    """Write the vocabulary of CLIP's tokenizer for single bytes and a few pairs; returns its size."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = ["c a", "ca t</w>", "d o", "do g</w>"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return len(words)
