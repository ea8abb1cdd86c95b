"""Weight files in and out: the public layouts in their exact format, and files that are broken in every way."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sam2.build_sam import build_sam2
from torch import Tensor, nn
from torchscale.architecture.config import EncoderConfig
from torchscale.model.BEiT3 import BEiT3

from openworldsam.checkpoint import (
    WeightFile,
    fingerprint,
    load_component,
    load_weights,
    read_weights,
    save_adapter,
)
from openworldsam.config import add_openworldsam_config, load_config
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.prompt_encoders.beit3 import resize_positions
from openworldsam.utils.files import save_atomically

State = dict[str, Tensor]

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"
TINY_TRUNK = {
    "embed_dim": 16,
    "num_heads": 1,
    "stages": [1, 1, 2, 1],
    "global_att_blocks": [3],
    "window_spec": [8, 4, 4, 4],
}
POSITIONS = "beit3.encoder.embed_positions.A.weight"
# name in the file -> name in the model, some of every group
MAPPING = {
    "sam2": {
        "image_encoder.trunk.patch_embed.proj.weight": "image_encoder.backbone.trunk.patch_embed.proj.weight",
        "image_encoder.trunk.pos_embed_window": "image_encoder.backbone.trunk.pos_embed_window",
        "image_encoder.trunk.blocks.2.attn.qkv.bias": "image_encoder.backbone.trunk.blocks.2.attn.qkv.bias",
        "image_encoder.neck.convs.0.conv.weight": "image_encoder.backbone.neck.convs.0.conv.weight",
        "no_mem_embed": "image_encoder.no_mem_embed",
        "sam_mask_decoder.conv_s0.weight": "image_encoder.conv_s0.weight",
        "sam_mask_decoder.conv_s1.bias": "image_encoder.conv_s1.bias",
        "sam_mask_decoder.mask_tokens.weight": "mask_decoder.decoder.mask_tokens.weight",
        "sam_mask_decoder.transformer.layers.1.mlp.layers.0.weight": (
            "mask_decoder.decoder.transformer.layers.1.mlp.layers.0.weight"
        ),
        "sam_mask_decoder.output_hypernetworks_mlps.3.layers.2.bias": (
            "mask_decoder.decoder.output_hypernetworks_mlps.3.layers.2.bias"
        ),
        "sam_prompt_encoder.no_mask_embed.weight": "mask_decoder.prompt_encoder.no_mask_embed.weight",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (
            "mask_decoder.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        ),
    },
    "beit3": {
        "beit3.text_embed.weight": "prompt_encoder.beit3.text_embed.weight",
        "beit3.vision_embed.cls_token": "prompt_encoder.beit3.vision_embed.cls_token",
        POSITIONS: f"prompt_encoder.{POSITIONS}",
        "beit3.encoder.layers.1.self_attn.k_proj.B.weight": (
            "prompt_encoder.beit3.encoder.layers.1.self_attn.k_proj.B.weight"
        ),
        "beit3.encoder.layer_norm.A.bias": "prompt_encoder.beit3.encoder.layer_norm.A.bias",
    },
    "adapter": {
        "adapter.projector.0.weight": "adapter.projector.0.weight",
        "adapter.projector.2.bias": "adapter.projector.2.bias",
        "adapter.tie_breakers": "adapter.tie_breakers",
        "adapter.soft_prompt.layers.0.self_attn.in_proj_weight": (
            "adapter.soft_prompt.layers.0.self_attn.in_proj_weight"
        ),
        "adapter.soft_prompt.layers.2.mlp.3.bias": "adapter.soft_prompt.layers.2.mlp.3.bias",
    },
}
MODULES = {"sam2": ("image_encoder", "mask_decoder"), "beit3": ("prompt_encoder",), "adapter": ("adapter",)}


def make_cfg(**keys: object) -> CfgNode:
    """The tiny config at SAM2's own width; SAM2__WIDTH=64 means MODEL.SAM2.WIDTH 64."""
    keys = {"WEIGHTS": "", "SAM2__WIDTH": 256, **keys}
    opts = [word for key, value in keys.items() for word in (f"MODEL.{key.replace('__', '.')}", str(value))]
    return load_config(CONFIG, opts)


def make_model(**keys: object) -> OpenWorldSAM:
    return OpenWorldSAM(make_cfg(**keys))


def filled(state: State, seed: int) -> State:
    """Random values, so that no two tensors are equal."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def sam2_state(version: str, seed: int = 1, **trunk: object) -> State:
    """A state dict of the sam2 package's own model with its video modules, but a small trunk."""
    trunk = {**TINY_TRUNK, **trunk}
    width = trunk["embed_dim"]
    assert isinstance(width, int)
    config = {"2.0": "configs/sam2/sam2_hiera_l.yaml", "2.1": "configs/sam2.1/sam2.1_hiera_l.yaml"}[version]
    overrides = [
        "++model.image_size=128",
        "++model.memory_attention.num_layers=1",
        "++model.memory_attention.layer.dim_feedforward=64",
        f"++model.image_encoder.neck.backbone_channel_list={[8 * width, 4 * width, 2 * width, width]}",
        *(f"++model.image_encoder.trunk.{key}={value}" for key, value in trunk.items()),
    ]
    return filled(build_sam2(config, None, device="cpu", hydra_overrides_extra=overrides).state_dict(), seed)


def beit3_state(width: int = 32, layers: int = 2, side: int = 32, seed: int = 2) -> State:
    config = EncoderConfig(
        img_size=side,
        patch_size=16,
        vocab_size=300,
        multiway=True,
        layernorm_embedding=False,
        normalize_output=True,
        no_output_layer=True,
        drop_path_rate=0,
        encoder_embed_dim=width,
        encoder_attention_heads=2,
        encoder_ffn_embed_dim=64,
        encoder_layers=layers,
        max_source_positions=1024,
    )
    return filled({f"beit3.{name}": tensor for name, tensor in BEiT3(config).state_dict().items()}, seed)


def adapter_shapes(embed: int = 32, width: int = 256, queries: int = 4, layers: int = 3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released checkpoint's adapter."""
    shapes: dict[str, tuple[int, ...]] = {
        "text_hidden_fcs.0.0.weight": (embed, embed),
        "text_hidden_fcs.0.0.bias": (embed,),
        "text_hidden_fcs.0.2.weight": (width, embed),
        "text_hidden_fcs.0.2.bias": (width,),
        "positional_tokens": (queries, width),
    }
    for layer in (f"cross_attention_transformer.layers.{i}." for i in range(layers)):
        for norm in ("self_attn_norm", "cross_attn_norm", "mlp_norm"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
        for attention in ("self_attn", "cross_attn"):
            shapes[f"{layer}{attention}.in_proj_weight"] = (3 * width, width)
            shapes[f"{layer}{attention}.in_proj_bias"] = (3 * width,)
            shapes[f"{layer}{attention}.out_proj.weight"] = (width, width)
            shapes[f"{layer}{attention}.out_proj.bias"] = (width,)
        shapes |= {f"{layer}mlp.0.weight": (4 * width, width), f"{layer}mlp.0.bias": (4 * width,)}
        shapes |= {f"{layer}mlp.3.weight": (width, 4 * width), f"{layer}mlp.3.bias": (width,)}
    return shapes


def released_adapter(seed: int = 3, **sizes: int) -> State:
    return filled({name: torch.empty(shape) for name, shape in adapter_shapes(**sizes).items()}, seed)


def our_adapter(released: State) -> State:
    """The released checkpoint's adapter under our names."""
    state = {}
    for name, tensor in released.items():
        name = name.replace("text_hidden_fcs.0.", "projector.")
        name = name.replace("positional_tokens", "tie_breakers").replace("cross_attention_transformer", "soft_prompt")
        state[f"adapter.{name}"] = tensor
    return state


def with_prefix(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def evf_state(sam2: State, beit3: State, seed: int = 4) -> State:
    own = {name: shape for name, shape in adapter_shapes().items() if name.startswith("text_hidden_fcs")}
    own_projector = filled({name: torch.empty(shape) for name, shape in own.items()}, seed)
    return {**with_prefix("visual_model.", sam2), **with_prefix("mm_extractor.", beit3), **own_projector}


def released_state(sam2: State, beit3: State, adapter: State) -> State:
    """As the official code saves it: both encoders twice, and an unused projector."""
    evf = evf_state(sam2, beit3)
    encoders = {name: tensor for name, tensor in evf.items() if not name.startswith("text_hidden_fcs")}
    return {**encoders, **adapter, **with_prefix("evf_sam2.", evf)}


def retrieval_heads() -> State:
    """What BEiT-3's published variants add to the backbone."""
    return filled(
        {
            "mlm_head.weight": torch.empty(300, 32),
            "mlm_head.bias": torch.empty(300),
            "mim_head.weight": torch.empty(64, 32),
            "language_head.weight": torch.empty(32, 32),
            "vision_head.weight": torch.empty(32, 32),
            "logit_scale": torch.empty(()),
        },
        5,
    )


@pytest.fixture(scope="session")
def states() -> dict[str, State]:
    return {
        "2.0": sam2_state("2.0", seed=10),
        "2.1": sam2_state("2.1", seed=11),
        "beit3": beit3_state(),
        "released adapter": released_adapter(),
        "adapter": our_adapter(released_adapter()),
    }


@pytest.fixture(scope="session")
def files(states: dict[str, State], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every public layout as its publisher saves it."""
    folder = tmp_path_factory.mktemp("layouts")
    paths = {}

    def save(name: str, content: object) -> None:
        paths[name] = folder / name
        torch.save(content, paths[name])

    save("sam2_hiera.pt", {"model": states["2.0"]})
    save("sam2.1_hiera.pt", {"model": states["2.1"]})
    save("beit3.pth", {"model": {**states["beit3"], **retrieval_heads()}})
    arguments = argparse.Namespace(lr=1e-3, model="beit3", betas=[0.9, 0.98], resume=None)
    training = {"epoch": 3, "args": arguments, "scaler": {"scale": 1024.0}}
    save("beit3_trained.pth", {"model": {**states["beit3"], **retrieval_heads()}, **training})

    evf = evf_state(states["2.0"], states["beit3"])
    save("pytorch_model.bin", evf)
    paths["model.safetensors"] = folder / "model.safetensors"
    save_file(evf, paths["model.safetensors"], metadata={"format": "pt"})
    for kind, suffix in (("safetensors", "safetensors"), ("bin", "bin")):
        paths[f"sharded {kind}"] = write_shards(folder / f"sharded_{kind}", evf, suffix)
    paths["folder"] = folder / "snapshot"
    paths["folder"].mkdir()
    (paths["folder"] / "config.json").write_text('{"hidden_size": 1024}')
    save_file(evf, paths["folder"] / "model.safetensors")

    released = released_state(states["2.0"], states["beit3"], states["released adapter"])
    save("bare.pth", released)
    paths["model_final.pth"] = write_with_detectron2(folder, released)
    paths["adapter.safetensors"] = folder / "adapter.safetensors"
    save_file(states["adapter"], paths["adapter.safetensors"])
    return paths


def write_shards(folder: Path, state: State, suffix: str) -> Path:
    """Two shards and their index, as Hugging Face writes them; returns the index."""
    folder.mkdir()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    index: dict[str, str] = {}
    for i, shard in enumerate(names):
        part = {name: tensor for j, (name, tensor) in enumerate(state.items()) if j % 2 == i}
        index |= dict.fromkeys(part, shard)
        if suffix == "safetensors":
            save_file(part, folder / shard)
        else:
            torch.save(part, folder / shard)
    path = folder / f"{stem}.{suffix}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return path


def write_with_detectron2(folder: Path, state: State) -> Path:
    """By Detectron2's own checkpointer, with an optimizer and a schedule that have run."""

    class Bag(nn.Module):
        def state_dict(self, *args: object, **kwargs: object) -> State:  # type: ignore[override]
            return state

    trained = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    trained(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    checkpointer = DetectionCheckpointer(Bag(), str(folder), optimizer=optimizer, scheduler=schedule)
    checkpointer.save("model_final", iteration=89999)
    return folder / "model_final.pth"


def digest(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes()


def check_arrival(model: nn.Module, component: str, public: State) -> None:
    """Each tensor of the component's modules holds the values of the file's tensor of the same meaning."""
    ours = model.state_dict()
    for name, our_name in MAPPING[component].items():
        assert torch.equal(ours[our_name], public[name]), name
    name_of = {digest(tensor): name for name, tensor in public.items()}
    prefixes = tuple(f"{module}." for module in MODULES[component])
    for our_name in (name for name in ours if name.startswith(prefixes)):
        name = name_of[digest(ours[our_name])]
        assert our_name.endswith(name.split(".", 1)[-1]), (our_name, name)


def weight_file(component: str, state: State) -> WeightFile:
    return WeightFile(Path("given.pt"), "some layout", {component: state}, {})


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="openworldsam"):
        yield caplog


# ----------------------------------------------------------------------------------------------- exact formats


@pytest.mark.parametrize(
    ("name", "layout", "components"),
    [
        ("sam2_hiera.pt", "SAM 2.0", {"sam2"}),
        ("sam2.1_hiera.pt", "SAM 2.1", {"sam2"}),
        ("beit3.pth", "BEiT-3", {"beit3"}),
        ("beit3_trained.pth", "BEiT-3", {"beit3"}),
        ("pytorch_model.bin", "EVF-SAM2", {"sam2", "beit3"}),
        ("model.safetensors", "EVF-SAM2", {"sam2", "beit3"}),
        ("sharded safetensors", "EVF-SAM2", {"sam2", "beit3"}),
        ("sharded bin", "EVF-SAM2", {"sam2", "beit3"}),
        ("folder", "EVF-SAM2", {"sam2", "beit3"}),
        ("model_final.pth", "released", {"sam2", "beit3", "adapter"}),
        ("bare.pth", "released", {"sam2", "beit3", "adapter"}),
        ("adapter.safetensors", "adapter", {"adapter"}),
    ],
)
def test_each_layout_is_recognised_and_read_under_public_names(
    name: str, layout: str, components: set[str], files: dict[str, Path], states: dict[str, State]
) -> None:
    file = read_weights(files[name])
    assert file.layout == layout
    assert file.components.keys() == components
    sam2 = states["2.1" if layout == "SAM 2.1" else "2.0"]
    expected = {"sam2": sam2, "beit3": states["beit3"], "adapter": states["adapter"]}
    for component, state in file.components.items():
        assert state.keys() == expected[component].keys()
        assert all(torch.equal(tensor, expected[component][n]) for n, tensor in state.items())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_folder_of_shards_is_read_like_its_index(kind: str, files: dict[str, Path]) -> None:
    index = files[f"sharded {kind}"]
    by_index, by_folder = read_weights(index), read_weights(index.parent)
    assert by_index.source("sam2").fingerprint == by_folder.source("sam2").fingerprint
    assert by_folder.components["beit3"].keys() == by_index.components["beit3"].keys()


def test_both_versions_of_sam2_differ_only_in_video_modules(states: dict[str, State]) -> None:
    assert states["2.1"].keys() - states["2.0"].keys() == {
        "no_obj_embed_spatial",
        "obj_ptr_tpos_proj.weight",
        "obj_ptr_tpos_proj.bias",
    }


@pytest.mark.parametrize(
    ("weights", "sam2", "beit3", "version"),
    [
        ("model_final.pth", "", "", "2.0"),
        ("bare.pth", "", "", "2.0"),
        ("adapter.safetensors", "sam2_hiera.pt", "beit3.pth", "2.0"),
        ("adapter.safetensors", "sam2.1_hiera.pt", "beit3_trained.pth", "2.1"),
        ("adapter.safetensors", "pytorch_model.bin", "pytorch_model.bin", "2.0"),
        ("adapter.safetensors", "model.safetensors", "sharded safetensors", "2.0"),
        ("adapter.safetensors", "folder", "sharded bin", "2.0"),
        ("adapter.safetensors", "model_final.pth", "model_final.pth", "2.0"),
    ],
)
def test_every_tensor_of_the_model_gets_the_values_of_the_file(
    weights: str, sam2: str, beit3: str, version: str, files: dict[str, Path], states: dict[str, State]
) -> None:
    cfg = make_cfg(
        WEIGHTS=files[weights],
        SAM2__WEIGHTS=files.get(sam2, ""),
        PROMPT_ENCODER__WEIGHTS=files.get(beit3, ""),
    )
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg)
    check_arrival(model, "sam2", states[version])
    check_arrival(model, "beit3", states["beit3"])
    check_arrival(model, "adapter", states["adapter"])
    assert sources["sam2"].file == files[sam2 or weights].name
    assert sources["beit3"].file == files[beit3 or weights].name
    assert sources["adapter"].file == files[weights].name
    assert sources["sam2"].fingerprint == fingerprint(states[version])
    assert sources["beit3"].fingerprint == fingerprint(states["beit3"])


def test_sam2_without_its_video_modules_loads(states: dict[str, State]) -> None:
    image = ("image_encoder.", "sam_mask_decoder.", "sam_prompt_encoder.", "no_mem_embed")
    model = make_model()
    load_component(model, "sam2", weight_file("sam2", {n: t for n, t in states["2.0"].items() if n.startswith(image)}))
    check_arrival(model, "sam2", states["2.0"])


def test_only_the_adapter_is_trainable_after_loading(files: dict[str, Path]) -> None:
    cfg = make_cfg(WEIGHTS=files["model_final.pth"])
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith("adapter.")}
    assert len(trainable) == 59


def test_a_trainable_prompt_encoder_stays_trainable_after_loading(files: dict[str, Path]) -> None:
    cfg = make_cfg(WEIGHTS=files["model_final.pth"], PROMPT_ENCODER__TRAINABLE=True)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    assert all(parameter.requires_grad for parameter in model.prompt_encoder.parameters())


@pytest.mark.parametrize("weights", ["model_final.pth", "adapter.safetensors"])
def test_training_in_place_leaves_file_and_read_tensors_alone(
    weights: str, files: dict[str, Path], states: dict[str, State]
) -> None:
    file = read_weights(files[weights])
    model = make_model()
    before = files[weights].read_bytes()
    load_component(model, "adapter", file)
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter.zero_()
    assert all(torch.equal(t, states["adapter"][n]) for n, t in file.components["adapter"].items())
    assert files[weights].read_bytes() == before


@pytest.mark.parametrize("weights", ["model_final.pth", "model.safetensors"])
def test_writing_into_frozen_tensors_leaves_the_file_alone(weights: str, files: dict[str, Path]) -> None:
    model = make_model()
    before = files[weights].read_bytes()
    load_component(model, "sam2", read_weights(files[weights]))
    with torch.no_grad():
        model.image_encoder.no_mem_embed.zero_()
        model.mask_decoder.decoder.mask_tokens.weight.zero_()
    assert files[weights].read_bytes() == before


def test_a_full_checkpoint_alone_is_read(files: dict[str, Path], tmp_path: Path, states: dict[str, State]) -> None:
    missing = tmp_path / "missing.pt"
    cfg = make_cfg(WEIGHTS=files["model_final.pth"], SAM2__WEIGHTS=missing, PROMPT_ENCODER__WEIGHTS=missing)
    model = OpenWorldSAM(cfg)
    assert load_weights(model, cfg)["sam2"].file == "model_final.pth"
    check_arrival(model, "sam2", states["2.0"])


def test_evf_projector_does_not_become_the_adapter(files: dict[str, Path]) -> None:
    for evf in (files["pytorch_model.bin"], files["folder"]):
        cfg = make_cfg(WEIGHTS=evf)
        model = OpenWorldSAM(cfg)
        before = {n: t.clone() for n, t in model.adapter.state_dict().items()}
        assert load_weights(model, cfg, need_adapter=False).keys() == {"sam2", "beit3"}
        assert all(torch.equal(t, before[n]) for n, t in model.adapter.state_dict().items())
        with pytest.raises(ValueError, match="no weights for adapter"):
            load_weights(OpenWorldSAM(cfg), cfg)


@pytest.mark.parametrize(("dtype", "suffix"), [(torch.float16, ".pth"), (torch.bfloat16, ".safetensors")])
def test_half_precision_files_load_as_fp32(
    dtype: torch.dtype, suffix: str, states: dict[str, State], tmp_path: Path
) -> None:
    adapter = states["released adapter"]
    half = {n: t.to(dtype) for n, t in {**evf_state(states["2.0"], states["beit3"]), **adapter}.items()}
    path = tmp_path / f"half{suffix}"
    if suffix == ".pth":
        torch.save({"model": half}, path)
    else:
        save_file(half, path)
    cfg = make_cfg(WEIGHTS=path)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    for component, name in (("sam2", "2.0"), ("beit3", "beit3"), ("adapter", "adapter")):
        check_arrival(model, component, {n: t.to(dtype).float() for n, t in states[name].items()})


def test_names_of_the_full_size_model_are_counted_and_loaded(tmp_path: Path) -> None:
    cfg = get_cfg()
    add_openworldsam_config(cfg)
    # Hiera reads values of a linspace while it is built
    linspace = functools.partial(torch.linspace, device="cpu")
    with torch.device("meta"), mock.patch("torch.linspace", linspace):
        sam2 = build_sam2("configs/sam2/sam2_hiera_l.yaml", None, device="meta").state_dict()
        model = OpenWorldSAM(cfg)
    beit3 = {f"beit3.{n}": t for n, t in model.prompt_encoder.beit3.state_dict().items()}
    adapter = {n: torch.empty(s) for n, s in adapter_shapes(embed=1024, queries=20).items()}
    # tensors of the right shapes that take four bytes each
    state = {n: torch.zeros(1).expand(t.shape) for n, t in released_state(sam2, beit3, adapter).items()}
    own_projector = {"0.0.weight": (1024, 1024), "0.0.bias": (1024,), "0.2.weight": (256, 1024), "0.2.bias": (256,)}
    for name, shape in own_projector.items():
        state[f"evf_sam2.text_hidden_fcs.{name}"] = torch.zeros(1).expand(shape)
    assert len(state) == 3805
    torch.save({"model": state}, tmp_path / "model_final.pth")

    file = read_weights(tmp_path / "model_final.pth")
    assert {component: len(part) for component, part in file.components.items()} == {
        "sam2": 900,
        "beit3": 971,
        "adapter": 59,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the adapter's values are copied into the void
        for component in file.components:
            load_component(model, component, file)
    frozen = [p for m in model.frozen_modules for p in m.state_dict().values()]
    assert not any(p.is_meta for p in frozen)
    assert sum(math.prod(t.shape) for t in file.components["sam2"].values()) - 256 == 224_430_130


# ----------------------------------------------------------------------------------------------- strictness


SAMPLES = {
    "sam2": ("sam_mask_decoder.iou_token.weight", "sam_mask_decoder.iou_token.bias"),
    "beit3": ("beit3.encoder.layers.0.ffn.A.fc1.weight", "beit3.encoder.layers.9.ffn.A.fc1.weight"),
    "adapter": ("adapter.projector.2.weight", "adapter.projector.4.weight"),
}


def of(component: str, states: dict[str, State]) -> State:
    return dict(states["2.0" if component == "sam2" else component])


Refusal = Callable[[str, State], str]


@pytest.fixture(scope="module")
def refusal() -> Refusal:
    """Loads a state of a component that does not fit and returns the message; the model may not have changed."""
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def load(component: str, state: State) -> str:
        with pytest.raises(ValueError) as caught:
            load_component(model, component, weight_file(component, state))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert "given.pt" in str(caught.value)
        return str(caught.value)

    return load


@pytest.mark.parametrize("component", SAMPLES)
def test_a_missing_tensor_is_named(component: str, states: dict[str, State], refusal: Refusal) -> None:
    name = SAMPLES[component][0]
    state = of(component, states)
    del state[name]
    message = refusal(component, state)
    assert "missing" in message and name.split(".", 1)[1] in message


@pytest.mark.parametrize("component", SAMPLES)
def test_an_unexpected_tensor_is_named(component: str, states: dict[str, State], refusal: Refusal) -> None:
    name = SAMPLES[component][1]
    message = refusal(component, {**of(component, states), name: torch.zeros(3)})
    assert "unexpected" in message and name.split(".", 1)[1] in message


@pytest.mark.parametrize("component", SAMPLES)
@pytest.mark.parametrize("shape", [(7, 9), (5,), (), (0, 256)])
def test_a_wrongly_shaped_tensor_is_named_with_both_shapes(
    component: str, shape: tuple[int, ...], states: dict[str, State], refusal: Refusal
) -> None:
    name = SAMPLES[component][0]
    state = of(component, states)
    right = tuple(state[name].shape)
    message = refusal(component, {**state, name: torch.zeros(shape)})
    assert name.split(".", 1)[1] in message and str(shape) in message and str(right) in message


@pytest.mark.parametrize("component", SAMPLES)
def test_each_single_missing_tensor_is_noticed(component: str, states: dict[str, State], refusal: Refusal) -> None:
    state = of(component, states)
    names = list(MAPPING[component])
    for name in random.Random(0).sample(names, len(names)):
        part = {n: t for n, t in state.items() if n != name}
        assert name.split(".", 1)[-1] in refusal(component, part)


@pytest.mark.parametrize("name", ["module.beit3.x", "head.weight", "image_encoder.trunk.blocks.77.norm1.weight"])
def test_a_name_that_fits_no_prefix_is_unexpected(name: str, states: dict[str, State], refusal: Refusal) -> None:
    message = refusal("sam2", {**states["2.0"], name: torch.zeros(1)})
    assert "unexpected" in message and name.split(".", 1)[1] in message


def test_many_problems_are_counted_not_listed(states: dict[str, State], refusal: Refusal) -> None:
    message = refusal("beit3", {"beit3.text_embed.weight": states["beit3"]["beit3.text_embed.weight"]})
    assert message.count("missing") == 4
    assert f"{len(states['beit3']) - 1 - 4} more" in message


@pytest.mark.parametrize(
    ("stages", "name"),
    [([1, 2, 7, 2], "tiny"), ([1, 2, 11, 2], "small"), ([2, 3, 16, 3], "base_plus"), ([2, 6, 36, 4], "large")],
)
def test_a_hiera_of_another_size_is_named(stages: list[int], name: str, refusal: Refusal) -> None:
    state = sam2_state("2.0", stages=stages, global_att_blocks=[sum(stages) - 5])
    message = refusal("sam2", state)
    assert f"{sum(stages)} blocks ({name})" in message and "configs/encoders/" in message


def test_advice_about_each_hiera_names_a_config_that_exists_or_the_defaults(refusal: Refusal) -> None:
    state = sam2_state("2.0", stages=[2, 6, 36, 4], global_att_blocks=[43])
    message = refusal("sam2", state)
    present = [path.name for path in (CONFIG.parent / "encoders").glob("*large*")]
    assert present or "default" in message


def test_beit3_base_in_place_of_another_is_named(refusal: Refusal) -> None:
    message = refusal("beit3", beit3_state(width=768))
    assert "width 768 (base)" in message and "configs/encoders/beit3_base.yaml" in message
    assert (CONFIG.parent / "encoders" / "beit3_base.yaml").is_file()


def test_beit3_large_in_place_of_another_is_named(refusal: Refusal) -> None:
    assert "width 1024 (large)" in refusal("beit3", beit3_state(width=1024))


@pytest.mark.parametrize(("queries", "layers"), [(3, 3), (20, 3), (4, 2), (4, 1), (5, 4)])
def test_an_adapter_of_another_size_gets_the_keys_to_set(queries: int, layers: int, refusal: Refusal) -> None:
    state = our_adapter(released_adapter(queries=queries, layers=layers))
    message = refusal("adapter", state)
    assert f"MODEL.ADAPTER.NUM_TIE_BREAKERS {queries} " in message and f"MODEL.ADAPTER.NUM_LAYERS {layers}." in message
    model = make_model(ADAPTER__NUM_TIE_BREAKERS=queries, ADAPTER__NUM_LAYERS=layers)
    load_component(model, "adapter", weight_file("adapter", state))  # the advice is right
    assert torch.equal(model.adapter.tie_breakers, state["adapter.tie_breakers"])


def test_a_training_may_begin_with_the_first_tie_breakers_of_an_adapter(refusal: Refusal) -> None:
    state = our_adapter(released_adapter(queries=20))
    refusal("adapter", state)  # but nothing else may
    model = make_model()
    wanted = model.adapter.num_queries
    load_component(model, "adapter", weight_file("adapter", state), fewer_tie_breakers=True)
    assert wanted < 20 and torch.equal(model.adapter.tie_breakers, state["adapter.tie_breakers"][:wanted])
    for queries in (0, wanted - 1):  # no more than there are
        state = our_adapter(released_adapter(queries=queries))
        with pytest.raises(ValueError, match="NUM_TIE_BREAKERS"):
            load_component(model, "adapter", weight_file("adapter", state), fewer_tie_breakers=True)


@pytest.mark.parametrize(("queries", "layers"), [(0, 3), (4, 0), (0, 0)])
def test_an_adapter_without_tie_breakers_or_transformer_gets_the_keys_to_set(
    queries: int, layers: int, refusal: Refusal
) -> None:
    state = our_adapter(released_adapter(layers=layers))
    if not queries:
        del state["adapter.tie_breakers"]
    message = refusal("adapter", state)
    assert f"MODEL.ADAPTER.NUM_TIE_BREAKERS {queries} " in message and f"MODEL.ADAPTER.NUM_LAYERS {layers}." in message
    model = make_model(ADAPTER__NUM_TIE_BREAKERS=queries, ADAPTER__NUM_LAYERS=layers)
    load_component(model, "adapter", weight_file("adapter", state))


def test_advice_about_a_beit3_file_never_speaks_of_the_adapter(states: dict[str, State], refusal: Refusal) -> None:
    state = {n: t for n, t in states["beit3"].items() if n != "beit3.text_embed.weight"}
    assert "MODEL.ADAPTER" not in refusal("beit3", state)


@pytest.mark.parametrize(
    ("component", "name", "shape"),
    [
        ("beit3", "beit3.text_embed.weight", (5,)),
        ("beit3", POSITIONS, (8, 32)),  # five patches are no square
        ("beit3", POSITIONS, (2, 32)),
        ("beit3", POSITIONS, (12,)),
        ("adapter", "adapter.tie_breakers", ()),
    ],
)
def test_a_wrong_shape_where_the_loader_looks_closer_is_named_too(
    component: str, name: str, shape: tuple[int, ...], states: dict[str, State], refusal: Refusal
) -> None:
    message = refusal(component, {**of(component, states), name: torch.zeros(shape)})
    assert name.split(".", 1)[1] in message and str(shape) in message


@pytest.mark.parametrize("name", ["text_hidden_fcs.1.0.weight", "criterion.empty_weight", "visual_modelX.weight"])
def test_an_unknown_tensor_of_a_full_checkpoint_is_named(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(files["bare.pth"], mmap=True)
    torch.save({"model": {**state, name: torch.zeros(2)}}, tmp_path / "more.pth")
    cfg = make_cfg(WEIGHTS=tmp_path / "more.pth")
    with pytest.raises(ValueError, match=name):
        load_weights(OpenWorldSAM(cfg), cfg)


@pytest.mark.parametrize(
    ("key", "name", "layout"),
    [
        ("SAM2__WEIGHTS", "beit3.pth", "BEiT-3"),
        ("SAM2__WEIGHTS", "adapter.safetensors", "adapter"),
        ("PROMPT_ENCODER__WEIGHTS", "sam2_hiera.pt", "SAM 2.0"),
        ("PROMPT_ENCODER__WEIGHTS", "sam2.1_hiera.pt", "SAM 2.1"),
        ("PROMPT_ENCODER__WEIGHTS", "adapter.safetensors", "adapter"),
    ],
)
def test_a_file_of_the_wrong_kind_names_the_key(key: str, name: str, layout: str, files: dict[str, Path]) -> None:
    right = {
        "WEIGHTS": files["adapter.safetensors"],
        "SAM2__WEIGHTS": files["sam2_hiera.pt"],
        "PROMPT_ENCODER__WEIGHTS": files["beit3.pth"],
    }
    cfg = make_cfg(**{**right, key: files[name]})
    with pytest.raises(ValueError) as caught:
        load_weights(OpenWorldSAM(cfg), cfg)
    message = str(caught.value)
    assert f"MODEL.{key.replace('__', '.')} needs them" in message
    assert str(files[name]) in message and f"({layout})" in message


@pytest.mark.parametrize("name", ["sam2_hiera.pt", "beit3.pth", "pytorch_model.bin"])
def test_an_encoder_alone_is_no_adapter(name: str, files: dict[str, Path]) -> None:
    cfg = make_cfg(WEIGHTS=files[name], SAM2__WEIGHTS=files["sam2_hiera.pt"])
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = str(files["beit3.pth"])
    with pytest.raises(
        ValueError, match=r"no weights for adapter \(only sam2 from .*, beit3 from .*\): set MODEL\.WEIGHTS"
    ):
        load_weights(OpenWorldSAM(cfg), cfg)


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("WEIGHTS", "to an adapter file"),
        ("SAM2__WEIGHTS", r"\(python weights/download.py sam2_hiera_large"),
        ("PROMPT_ENCODER__WEIGHTS", r"\(python weights/download.py beit3_large, or evf_sam2_multitask"),
    ],
)
def test_a_component_without_a_file_names_its_key_and_command(
    missing: str, advice: str, files: dict[str, Path]
) -> None:
    keys = {
        "WEIGHTS": files["adapter.safetensors"],
        "SAM2__WEIGHTS": files["sam2_hiera.pt"],
        "PROMPT_ENCODER__WEIGHTS": files["beit3.pth"],
    }
    cfg = make_cfg(**{**keys, missing: ""})
    with pytest.raises(ValueError, match=rf"set MODEL\.{missing.replace('__', '[.]')} {advice}"):
        load_weights(OpenWorldSAM(cfg), cfg)


def test_no_file_at_all_names_the_one_that_holds_everything() -> None:
    cfg = make_cfg()
    with pytest.raises(ValueError, match=r"no weights: set MODEL\.WEIGHTS .*openworldsam_coco"):
        load_weights(OpenWorldSAM(cfg), cfg)


@pytest.mark.parametrize("key", ["WEIGHTS", "SAM2__WEIGHTS", "PROMPT_ENCODER__WEIGHTS"])
def test_a_missing_file_is_named(key: str, tmp_path: Path) -> None:
    cfg = make_cfg(**{key: tmp_path / "nowhere.pth"})
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth not found"):
        load_weights(OpenWorldSAM(cfg), cfg)


# ----------------------------------------------------------------------------------------------- broken files

SMALL = {"adapter.tie_breakers": torch.arange(6.0).view(2, 3), "adapter.projector.0.bias": torch.arange(3.0)}


def small_file(path: Path, legacy: bool = False) -> bytes:
    if path.suffix == ".safetensors":
        save_file(SMALL, path)
    else:
        torch.save({"model": SMALL, "iteration": 7}, path, _use_new_zipfile_serialization=not legacy)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.safetensors", "a.bin.index.json"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>Quota exceeded</html>", b"PK\x03\x04", b"\0" * 64])
def test_what_is_no_checkpoint_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_cut_anywhere_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    whole = small_file(path)
    for cut in [*range(0, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=name):
            read_weights(path)
    path.write_bytes(whole)
    assert read_weights(path).layout == "adapter"


def test_a_legacy_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "legacy.pth"
    whole = small_file(path, legacy=True)
    assert read_weights(path).layout == "adapter"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"legacy\.pth"):
            read_weights(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_wrong_bytes_is_read_or_refused_by_name(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pth"
    whole = small_file(path, legacy)
    rng = random.Random(0)
    for _ in range(300):
        changed = bytearray(whole)
        changed[rng.randrange(min(len(whole), 600))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            read_weights(path)
        except ValueError as error:
            assert "wrong.pth" in str(error)


def test_a_safetensors_file_with_wrong_bytes_is_read_or_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    whole = small_file(path)
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            read_weights(path)
        except ValueError as error:
            refused += 1
            assert "wrong.safetensors" in str(error)
    assert refused


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("random.pt"),
        "random.safetensors",
        pytest.param(
            "random.bin.index.json",
        ),
    ],
)
def test_random_bytes_are_refused_by_name(name: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(200):
        (tmp_path / name).write_bytes(rng.randbytes(rng.randint(1, 400)))
        with pytest.raises(ValueError, match=name):
            read_weights(tmp_path / name)


class Dangerous:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors", "plain.pth", "legacy.pth"])
def test_code_in_a_pickle_is_refused_and_does_not_run(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    content = {"model": {"adapter.tie_breakers": torch.zeros(2)}, "args": Dangerous(trace)}
    if name == "plain.pth":
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=name != "legacy.pth")
    with pytest.raises(ValueError, match=name):
        read_weights(tmp_path / name)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Dangerous(trace))).close()
    assert trace.exists()  # it would have been seen


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_value_that_is_not_finite_is_named(value: float, dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype, copy=True) for name, tensor in SMALL.items()}
    state["adapter.tie_breakers"][1, 1] = value
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    with pytest.raises(ValueError, match=rf"a{suffix}: tensor adapter\.tie_breakers .* not finite"):
        read_weights(path)


def test_opposite_infinities_are_not_finite(tmp_path: Path) -> None:
    torch.save({"adapter.tie_breakers": torch.tensor([math.inf, -math.inf])}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not finite"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [[], 3, "text", None, torch.zeros(3), [torch.zeros(3)]])
def test_a_pickle_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {}},
        {"model": {"adapter.x": 3}},
        {"model": 3},
        {"backbone.bottom_up.stem.weight": torch.zeros(2)},
        {"image_encoder.blocks.0.norm1.weight": torch.zeros(2)},  # the first Segment Anything
        {"visual_model.no_mem_embed": torch.zeros(2)},
        {"mm_extractor.beit3.x": torch.zeros(2)},
        {"positional_tokens": torch.zeros(2)},
    ],
)
def test_a_file_of_no_known_layout_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is of unknown layout.*weights/README\.md"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [{0: torch.zeros(2)}, {"model": {("a", 1): torch.zeros(2)}}, {"model": SMALL, "openworldsam": "0.1.0"}],
)
def test_a_pickle_with_odd_keys_is_read_or_refused_as_a_value_error(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    try:
        read_weights(tmp_path / "a.pt").source("adapter")
    except ValueError as error:
        assert "a.pt" in str(error)


def test_an_index_that_names_a_missing_shard_is_refused(states: dict[str, State], tmp_path: Path) -> None:
    index = write_shards(tmp_path / "shards", states["beit3"], "safetensors")
    (index.parent / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        read_weights(index)


def test_an_index_with_a_cut_shard_names_the_shard(states: dict[str, State], tmp_path: Path) -> None:
    index = write_shards(tmp_path / "shards", states["beit3"], "bin")
    shard = index.parent / "pytorch_model-00001-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match="pytorch_model-00001-of-00002"):
        read_weights(index)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "3",
        pytest.param('{"weight_map": null}'),
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "a.bin.index.json"}}',
    ],
)
def test_an_index_without_a_map_of_shards_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.bin\.index\.json"):
        read_weights(tmp_path / "a.bin.index.json")


def test_a_shard_of_the_index_that_lost_a_tensor_is_noticed(states: dict[str, State], tmp_path: Path) -> None:
    index = write_shards(tmp_path / "shards", states["beit3"], "safetensors")
    shard = index.parent / "model-00001-of-00002.safetensors"
    part = load_file(shard)
    lost = next(name for name in part if name in states["beit3"] and "layers.1." in name)
    save_file({name: tensor for name, tensor in part.items() if name != lost}, shard)
    with pytest.raises(ValueError, match=lost.replace(".", r"\.")):
        load_component(make_model(), "beit3", read_weights(index))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth", ".pt"])
def test_a_folder_with_two_weight_files_is_refused_with_both_names(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        small_file(tmp_path / f"{name}{suffix}")
    with pytest.raises(ValueError, match=rf"several weight files \(a{suffix}, b{suffix}\)"):
        read_weights(tmp_path)
    (tmp_path / f"b{suffix}").unlink()
    assert read_weights(tmp_path).layout == "adapter"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no weight file in the folder"):
        read_weights(tmp_path)


# ----------------------------------------------------------------------------------------------- positions


def test_positions_stay_when_the_sizes_are_equal() -> None:
    table = torch.randn(3 + 14 * 14, 5)
    assert torch.equal(resize_positions(table, len(table)), table)


@pytest.mark.parametrize("side", [1, 3, 8, 24])
def test_resized_positions_keep_the_first_rows_and_a_constant_grid(side: int) -> None:
    table = torch.randn(3 + 7 * 7, 5)
    table[3:] = torch.arange(5.0)
    resized = resize_positions(table, 3 + side * side)
    assert resized.shape == (3 + side * side, 5)
    assert torch.equal(resized[:3], table[:3])
    torch.testing.assert_close(resized[3:], torch.arange(5.0).expand(side * side, 5), atol=1e-5, rtol=0)


def test_resized_positions_keep_rows_and_columns_apart() -> None:
    # channel 0 grows with the patch's row, channel 1 with its column
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([row.flatten(), column.flatten()], dim=1)
    resized = resize_positions(torch.cat([torch.zeros(3, 2), grid]), 3 + 16 * 16)[3:].view(16, 16, 2)
    # away from the borders it follows the slope, but for the ripple of the cubic (0.047 at a quarter step)
    inner = slice(4, 12)
    expected = (torch.arange(16)[inner] + 0.5) / 2 - 0.5
    torch.testing.assert_close(resized[inner, inner, 0], expected[:, None].expand(8, 8), atol=0.05, rtol=0)
    torch.testing.assert_close(resized[inner, inner, 1], expected[None, :].expand(8, 8), atol=0.05, rtol=0)


def test_positions_are_resized_bicubically() -> None:
    # 3 patches a side to 1: the centre of the middle patch is the centre of the picture
    table = torch.randn(3 + 9, 4)
    torch.testing.assert_close(resize_positions(table, 4)[3], table[3 + 4])
    # 4 a side to 2: each new centre lies halfway between two old ones; the cubic's weights there (A = -0.75)
    weights = torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375])
    table = torch.randn(3 + 16, 4)
    grid = table[3:].view(4, 4, 4)
    taps = [[0, 0, 1, 2], [1, 2, 3, 3]]  # the border repeats
    expected = [torch.einsum("i,j,ijc->c", weights, weights, grid[r][:, c]) for r in taps for c in taps]
    torch.testing.assert_close(resize_positions(table, 3 + 4)[3:], torch.stack(expected))


@pytest.mark.parametrize("side", [64, 16])
def test_beit3_weights_load_at_another_image_size(side: int, states: dict[str, State]) -> None:
    model = make_model(PROMPT_ENCODER__IMAGE_SIZE=side)
    load_component(model, "beit3", weight_file("beit3", dict(states["beit3"])))
    loaded = model.prompt_encoder.beit3.encoder.embed_positions.A.weight
    expected = resize_positions(states["beit3"][POSITIONS], 3 + (side // 16) ** 2)
    assert loaded.shape[0] != len(states["beit3"][POSITIONS])
    assert torch.equal(loaded, expected)
    assert not loaded.requires_grad
    text = states["beit3"]["beit3.encoder.embed_positions.B.weight"]
    assert torch.equal(model.prompt_encoder.beit3.encoder.embed_positions.B.weight, text)


def test_another_image_size_leaves_the_fingerprint_alone(files: dict[str, Path]) -> None:
    file = read_weights(files["beit3.pth"])
    before = file.source("beit3")
    load_component(make_model(PROMPT_ENCODER__IMAGE_SIZE=64), "beit3", file)
    assert file.source("beit3") == before


# ----------------------------------------------------------------------------------------------- adapter files


def encoder_keys(files: dict[str, Path]) -> dict[str, object]:
    return {"SAM2__WEIGHTS": files["sam2_hiera.pt"], "PROMPT_ENCODER__WEIGHTS": files["beit3.pth"]}


def saved_adapter(path: Path, files: dict[str, Path], **keys: object) -> OpenWorldSAM:
    cfg = make_cfg(**encoder_keys(files), **keys)
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg, need_adapter=False)
    save_adapter(model, path, cfg, sources)
    return model


def test_a_saved_adapter_comes_back_with_its_metadata(
    files: dict[str, Path], tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "new" / "folder" / "adapter.safetensors"
    trained = saved_adapter(path, files, ADAPTER__FUSION="add", ADAPTER__KEY_POSITIONS=True)
    with safe_open(path, framework="pt") as file:
        assert len(list(file.keys())) == 59
        metadata = file.metadata()
    assert metadata["preset"] == "paper"
    assert (metadata["ADAPTER.FUSION"], metadata["ADAPTER.INTERACTION"], metadata["ADAPTER.KEY_POSITIONS"]) == (
        "add",
        "prompt",
        "True",
    )
    recorded = json.loads(metadata["sam2"])
    assert recorded["file"] == "sam2_hiera.pt" and recorded["layout"] == "SAM 2.0"
    assert json.loads(metadata["beit3"])["file"] == "beit3.pth"

    cfg = make_cfg(WEIGHTS=path, **encoder_keys(files), ADAPTER__FUSION="add", ADAPTER__KEY_POSITIONS=True)
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg)
    assert sources["sam2"].fingerprint == recorded["fingerprint"]
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not log.records


@pytest.mark.parametrize(
    ("key", "value"),
    [("FUSION", "broadcast"), ("INTERACTION", "image"), ("KEY_POSITIONS", "True")],
)
def test_use_of_an_adapter_otherwise_than_trained_is_told(
    key: str, value: str, files: dict[str, Path], tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    saved_adapter(tmp_path / "adapter.safetensors", files)
    keys = {**encoder_keys(files), f"ADAPTER__{key}": value}
    cfg = make_cfg(WEIGHTS=tmp_path / "adapter.safetensors", **keys)
    load_weights(OpenWorldSAM(cfg), cfg)
    (record,) = log.records
    assert record.levelno == logging.WARNING
    assert f"MODEL.ADAPTER.{key}" in record.getMessage() and value in record.getMessage()


def test_other_encoders_than_trained_with_are_told(
    files: dict[str, Path], tmp_path: Path, states: dict[str, State], log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "adapter.safetensors"
    saved_adapter(path, files)
    cfg = make_cfg(WEIGHTS=path, SAM2__WEIGHTS=files["sam2.1_hiera.pt"], PROMPT_ENCODER__WEIGHTS=files["beit3.pth"])
    load_weights(OpenWorldSAM(cfg), cfg)
    (record,) = log.records
    message = record.getMessage()
    assert "other sam2 weights" in message and "sam2_hiera.pt" in message and "sam2.1_hiera.pt" in message

    log.clear()
    torch.save({"model": beit3_state(seed=77)}, tmp_path / "other_beit3.pth")
    cfg = make_cfg(WEIGHTS=path, SAM2__WEIGHTS=files["sam2_hiera.pt"])
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = str(tmp_path / "other_beit3.pth")
    load_weights(OpenWorldSAM(cfg), cfg)
    (record,) = log.records
    assert "other beit3 weights" in record.getMessage() and "other_beit3.pth" in record.getMessage()


def test_the_same_encoders_in_another_file_are_not_told(
    files: dict[str, Path], tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    saved_adapter(tmp_path / "adapter.safetensors", files)
    for name in ("model_final.pth", "model.safetensors", "sharded bin"):
        cfg = make_cfg(WEIGHTS=tmp_path / "adapter.safetensors", SAM2__WEIGHTS=files[name])
        cfg.MODEL.PROMPT_ENCODER.WEIGHTS = str(files[name])
        load_weights(OpenWorldSAM(cfg), cfg)
    assert not log.records


def test_a_failing_writer_leaves_the_old_file_and_no_other(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "adapter.safetensors"
    model = saved_adapter(path, files)
    before = path.read_bytes()

    def half(tensors: State, target: Path, metadata: dict[str, str]) -> None:
        Path(target).write_bytes(before[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openworldsam.checkpoint.writing.save_file", half)
    cfg = make_cfg(**encoder_keys(files))
    sources = {c: read_weights(files[n]).source(c) for c, n in (("sam2", "sam2_hiera.pt"), ("beit3", "beit3.pth"))}
    with pytest.raises(OSError, match="No space"):
        save_adapter(model, path, cfg, sources)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing_behind(error: type[BaseException], tmp_path: Path) -> None:
    seen = []

    def write(partial: Path) -> None:
        partial.write_text("half")
        seen.append(partial)
        raise error

    with pytest.raises(error):
        save_atomically(tmp_path / "folder" / "file", write)
    assert seen[0] != tmp_path / "folder" / "file"
    assert list((tmp_path / "folder").iterdir()) == []


def test_others_may_read_what_safetensors_writes_for_its_owner(tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o027, 0o640), (0o002, 0o664)):
        path = tmp_path / f"{mode}.safetensors"
        before = os.umask(umask)
        try:
            save_atomically(path, lambda partial: save_file({"a": torch.zeros(1)}, partial))
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == mode


def test_a_reader_never_sees_a_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    during = []

    def write(partial: Path) -> None:
        partial.write_text("new, ")
        during.append(path.read_text())
        partial.write_text("new, complete")

    save_atomically(path, write)
    assert during == ["old"]
    assert path.read_text() == "new, complete"


# ----------------------------------------------------------------------------------------------- fingerprints


def test_the_fingerprint_is_the_same_in_every_format(files: dict[str, Path], states: dict[str, State]) -> None:
    for component, expected, names in (
        ("sam2", states["2.0"], ("sam2_hiera.pt", "model_final.pth", "bare.pth", "sharded bin", "folder")),
        ("beit3", states["beit3"], ("beit3.pth", "beit3_trained.pth", "model_final.pth", "model.safetensors")),
        ("adapter", states["adapter"], ("model_final.pth", "bare.pth", "adapter.safetensors")),
    ):
        found = {read_weights(files[name]).source(component).fingerprint for name in names}
        assert found == {fingerprint(expected)}


def test_the_fingerprint_ignores_the_order_of_the_tensors() -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2)}
    assert fingerprint(state) == fingerprint(dict(reversed(state.items())))


@pytest.mark.parametrize("size", [1, 5, 16, 31, 32, 100, 1000])
def test_the_fingerprint_changes_with_a_sampled_value_a_name_or_a_shape(size: int) -> None:
    state = {"a": torch.arange(float(size))}
    seen = {fingerprint(state)}
    for sampled in range(0, size, max(1, size // 16)):
        changed = state["a"].clone()
        changed[sampled] += 0.5
        seen.add(fingerprint({"a": changed}))
    seen.add(fingerprint({"b": state["a"]}))
    seen.add(fingerprint({"a": state["a"][:, None]}))
    seen.add(fingerprint({**state, "b": torch.zeros(0)}))
    sampled_values = len(range(0, size, max(1, size // 16)))
    assert len(seen) == sampled_values + 4
    assert size < 16 or 16 <= sampled_values <= 31
    assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in seen)


def test_the_fingerprint_of_a_scalar_and_of_half_precision_exists() -> None:
    assert fingerprint({"a": torch.tensor(1.0)}) != fingerprint({"a": torch.tensor(2.0)})
    assert fingerprint({"a": torch.ones(4, dtype=torch.bfloat16)}) == fingerprint({"a": torch.ones(4)})
