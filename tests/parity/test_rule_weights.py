"""Weights made by rule: values by hand, and the checkpoint and tokenizer that are written."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from openworldsam.checkpoint import load_weights, read_weights
from openworldsam.config import load_config
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import BEiT3Tokenizer
from openworldsam.parity.rule_weights import NOTE, rule_stream, rule_tensor, save_rule_checkpoint, save_tokenizer

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"


def test_the_stream_has_its_check_values() -> None:
    stream = rule_stream("positional_tokens", (20, 256), seed=1)
    assert stream.dtype == np.float32 and stream.shape == (20, 256)
    np.testing.assert_allclose(stream.flat[:4], [0.1521456, -1.722959, 0.09183106, 0.117356], rtol=1e-6)


def test_the_stream_is_numpys_philox_with_seed_and_name_as_its_key() -> None:
    key = 5 * 2**32 + zlib.crc32(b"a.weight")
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal(6, dtype=np.float32)
    np.testing.assert_array_equal(rule_stream("a.weight", (2, 3), seed=5), expected.reshape(2, 3))


def test_the_stream_is_standard_normal() -> None:
    stream = rule_stream("x", (200, 200), seed=0)
    assert abs(stream.mean()) < 0.02 and abs(stream.std() - 1) < 0.02


def test_another_seed_or_name_gives_other_values_and_the_same_gives_the_same() -> None:
    first = rule_stream("a", (50,), seed=1)
    np.testing.assert_array_equal(first, rule_stream("a", (50,), seed=1))
    assert not np.isin(first, rule_stream("a", (50,), seed=2)).any()
    assert not np.isin(first, rule_stream("b", (50,), seed=1)).any()


@pytest.mark.parametrize(
    "name", ["positional_tokens", "visual_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
)
def test_tie_breakers_and_the_gaussian_matrix_are_the_stream_itself(name: str) -> None:
    np.testing.assert_array_equal(rule_tensor(name, (2, 128), seed=3), rule_stream(name, (2, 128), seed=3))


@pytest.mark.parametrize(
    ("name", "shape", "fan_in"),
    [
        ("text_hidden_fcs.0.0.weight", (6, 10), 10),
        ("visual_model.image_encoder.trunk.patch_embed.proj.weight", (8, 3, 7, 7), 147),
        ("visual_model.no_mem_embed", (1, 1, 256), 256),
        ("visual_model.image_encoder.trunk.pos_embed", (1, 4, 2, 2), 16),
        ("some.matrix.bias", (4, 9), 9),  # the shape decides before the name
    ],
)
def test_matrices_are_scaled_by_the_root_of_their_inputs(name: str, shape: tuple[int, ...], fan_in: int) -> None:
    expected = rule_stream(name, shape, seed=3) / np.float32(math.sqrt(fan_in))
    tensor = rule_tensor(name, shape, seed=3)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, expected)


def test_weights_of_a_vector_lie_around_one() -> None:
    name = "mm_extractor.beit3.encoder.layer_norm.A.weight"
    expected = np.float32(1) + np.float32(0.1) * rule_stream(name, (32,), seed=3)
    tensor = rule_tensor(name, (32,), seed=3)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("name", ["text_hidden_fcs.0.0.bias", "some.self_attn.in_proj_bias", "some.gamma"])
def test_other_vectors_are_small(name: str) -> None:
    tensor = rule_tensor(name, (32,), seed=3)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, np.float32(0.02) * rule_stream(name, (32,), seed=3))


def save(path: Path, seed: int, *opts: str) -> OpenWorldSAM:
    cfg = load_config(CONFIG, opts)
    model = OpenWorldSAM(cfg)
    save_rule_checkpoint(model, cfg, seed, path)
    return model


def test_the_checkpoint_holds_the_rule_under_released_names(tmp_path: Path) -> None:
    save(tmp_path / "model_final.pth", seed=4)
    content = torch.load(tmp_path / "model_final.pth")
    state = content["model"]
    assert content["openworldsam"]["note"] == f"{NOTE}, seed 4"
    counting = {name: tensor for name, tensor in state.items() if not name.startswith("evf_sam2.")}
    for name, tensor in counting.items():
        expected = torch.from_numpy(rule_tensor(name, tuple(tensor.shape), seed=4))
        assert torch.equal(tensor, expected), name
    for name in (
        "positional_tokens",
        "text_hidden_fcs.0.2.weight",
        "cross_attention_transformer.layers.2.mlp.3.weight",
        "visual_model.no_mem_embed",
        "visual_model.image_encoder.trunk.blocks.0.attn.qkv.weight",
        "visual_model.sam_mask_decoder.conv_s0.weight",
        "visual_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "mm_extractor.beit3.text_embed.weight",
    ):
        assert name in counting


def test_the_checkpoint_holds_both_encoders_twice_in_the_same_memory(tmp_path: Path) -> None:
    save(tmp_path / "model_final.pth", seed=4)
    state = torch.load(tmp_path / "model_final.pth")["model"]
    encoders = {name for name in state if name.startswith(("visual_model.", "mm_extractor."))}
    assert encoders and {name for name in state if name.startswith("evf_sam2.")} == {f"evf_sam2.{n}" for n in encoders}
    for name in encoders:
        assert state[f"evf_sam2.{name}"].data_ptr() == state[name].data_ptr()


def test_another_model_loads_the_checkpoint_as_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pth"
    made = save(path, seed=4)
    cfg = load_config(CONFIG, ["MODEL.WEIGHTS", str(path)])
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg)
    assert {source.note for source in sources.values()} == {f"{NOTE}, seed 4"}
    assert made.state_dict().keys() == model.state_dict().keys()
    for name, tensor in made.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_the_file_depends_on_the_seed_alone(tmp_path: Path) -> None:
    prints = []
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        torch.manual_seed(len(prints))  # the model's own initialisation plays no part
        save(tmp_path / f"{name}.pth", seed)
        file = read_weights(tmp_path / f"{name}.pth")
        prints.append({component: file.source(component).fingerprint for component in file.components})
    assert prints[0] == prints[1]
    assert all(prints[2][component] != prints[0][component] for component in prints[0])


@pytest.mark.parametrize(("queries", "layers"), [(4, 0), (0, 0), (0, 3)])
def test_the_ablated_adapters_of_table_5_load_too(queries: int, layers: int, tmp_path: Path) -> None:
    path = tmp_path / "model_final.pth"
    sizes = ["MODEL.ADAPTER.NUM_TIE_BREAKERS", str(queries), "MODEL.ADAPTER.NUM_LAYERS", str(layers)]
    made = save(path, 4, *sizes)
    cfg = load_config(CONFIG, [*sizes, "MODEL.WEIGHTS", str(path)])
    model = OpenWorldSAM(cfg)
    assert load_weights(model, cfg).keys() == {"sam2", "beit3", "adapter"}
    for name, tensor in made.adapter.state_dict().items():
        assert torch.equal(model.adapter.state_dict()[name], tensor), name


def test_the_tokenizer_splits_texts_within_the_tiny_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "new" / "beit3.spm"
    save_tokenizer(path)
    assert [p.name for p in path.parent.iterdir()] == ["beit3.spm"]
    ids = BEiT3Tokenizer(path, 20)(["zebra", "fire hydrant", "traffic light"])
    assert len({tuple(row) for row in ids.tolist()}) == 3
    assert int(ids.max()) < load_config(CONFIG).MODEL.PROMPT_ENCODER.VOCAB_SIZE
