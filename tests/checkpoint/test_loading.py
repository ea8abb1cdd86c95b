"""Weights into a model: every tensor arrives at its place, and what does not fit is named."""

import functools
import math
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from detectron2.config import get_cfg
from published import (
    adapter_shapes,
    beit3_state,
    evf_state,
    our_adapter,
    released_adapter,
    released_state,
    sam2_state,
    write_shards,
)
from safetensors.torch import load_file, save_file
from sam2.build_sam import build_sam2

from openworldsam.checkpoint import WeightFile, fingerprint, load_component, load_weights, read_weights
from openworldsam.config import add_openworldsam_config
from openworldsam.modeling import OpenWorldSAM

ENCODERS = Path(__file__).parents[2] / "configs/encoders"
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
        name: f"prompt_encoder.{name}"
        for name in (
            "beit3.text_embed.weight",
            "beit3.vision_embed.cls_token",
            POSITIONS,
            "beit3.encoder.layers.1.self_attn.k_proj.B.weight",
            "beit3.encoder.layer_norm.A.bias",
        )
    },
    "adapter": {
        name: name
        for name in (
            "adapter.projector.0.weight",
            "adapter.projector.2.bias",
            "adapter.tie_breakers",
            "adapter.soft_prompt.layers.0.self_attn.in_proj_weight",
            "adapter.soft_prompt.layers.2.mlp.3.bias",
        )
    },
}
MODULES = {"sam2": ("image_encoder.", "mask_decoder."), "beit3": ("prompt_encoder.",), "adapter": ("adapter.",)}


@pytest.fixture
def make_model(make_cfg):
    return lambda **keys: OpenWorldSAM(make_cfg(**keys))


def check_arrival(model, component, public):
    """Each tensor of the component's modules holds the values of the file's tensor of the same meaning."""

    def digest(tensor):
        return tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes()

    ours = model.state_dict()
    for name, our_name in MAPPING[component].items():
        assert torch.equal(ours[our_name], public[name]), name
    name_of = {digest(tensor): name for name, tensor in public.items()}
    for our_name in (name for name in ours if name.startswith(MODULES[component])):
        name = name_of[digest(ours[our_name])]
        assert our_name.endswith(name.split(".", 1)[-1]), (our_name, name)


def weight_file(component, state):
    return WeightFile(Path("given.pt"), "some layout", {component: state}, {})


def of(component, states):
    return dict(states["2.0" if component == "sam2" else component])


@pytest.mark.parametrize(
    ("weights", "sam2", "beit3", "version"),
    [
        ("model_final.pth", "", "", "2.0"),
        ("bare.pth", "", "", "2.0"),
        ("adapter.safetensors", "sam2_hiera.pt", "beit3.pth", "2.0"),
        ("adapter.safetensors", "sam2.1_hiera.pt", "beit3_trained.pth", "2.1"),
        ("adapter.safetensors", "pytorch_model.bin", "pytorch_model.bin", "2.0"),
        ("adapter.safetensors", "model.safetensors", "sharded safetensors", "2.0"),
        ("adapter.safetensors", "snapshot", "sharded bin", "2.0"),
        ("adapter.safetensors", "model_final.pth", "model_final.pth", "2.0"),
    ],
)
def test_every_tensor_of_the_model_gets_the_values_of_the_file(weights, sam2, beit3, version, files, states, make_cfg):
    keys = {"SAM2__WEIGHTS": files.get(sam2, ""), "PROMPT_ENCODER__WEIGHTS": files.get(beit3, "")}
    cfg = make_cfg(WEIGHTS=files[weights], **keys)
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg)
    for component, state in (("sam2", version), ("beit3", "beit3"), ("adapter", "adapter")):
        check_arrival(model, component, states[state])
        file = {"sam2": sam2, "beit3": beit3}.get(component) or weights
        assert sources[component].file == files[file].name
        assert sources[component].fingerprint == fingerprint(states[state])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith("adapter.")}
    assert len(trainable) == 59


def test_sam2_without_its_video_modules_loads(states, make_model):
    image = ("image_encoder.", "sam_mask_decoder.", "sam_prompt_encoder.", "no_mem_embed")
    model = make_model()
    load_component(model, "sam2", weight_file("sam2", {n: t for n, t in states["2.0"].items() if n.startswith(image)}))
    check_arrival(model, "sam2", states["2.0"])


def test_a_trainable_prompt_encoder_stays_trainable_after_loading(files, make_cfg):
    cfg = make_cfg(WEIGHTS=files["model_final.pth"], PROMPT_ENCODER__TRAINABLE=True)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    assert all(parameter.requires_grad for parameter in model.prompt_encoder.parameters())


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model_final.pth", "adapter"),
        ("adapter.safetensors", "adapter"),
        ("model_final.pth", "sam2"),
        ("model.safetensors", "sam2"),
    ],
)
def test_writing_into_the_model_leaves_the_file_alone(name, component, files, states, make_model):
    file, model = read_weights(files[name]), make_model()
    before = files[name].read_bytes()
    load_component(model, component, file)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert files[name].read_bytes() == before
    if component == "adapter":  # trained in place; frozen tensors are the file's own
        assert all(torch.equal(t, states["adapter"][n]) for n, t in file.components["adapter"].items())


def test_a_full_checkpoint_alone_is_read(files, tmp_path, states, make_cfg):
    missing = tmp_path / "missing.pt"
    cfg = make_cfg(WEIGHTS=files["model_final.pth"], SAM2__WEIGHTS=missing, PROMPT_ENCODER__WEIGHTS=missing)
    model = OpenWorldSAM(cfg)
    assert load_weights(model, cfg)["sam2"].file == "model_final.pth"
    check_arrival(model, "sam2", states["2.0"])


@pytest.mark.parametrize(("dtype", "suffix"), [(torch.float16, ".pth"), (torch.bfloat16, ".safetensors")])
def test_half_precision_files_load_as_fp32(dtype, suffix, states, tmp_path, make_cfg):
    whole = evf_state(states["2.0"], states["beit3"], states["released adapter"])
    half = {n: t.to(dtype) for n, t in whole.items()}
    path = tmp_path / f"half{suffix}"
    if suffix == ".pth":
        torch.save({"model": half}, path)
    else:
        save_file(half, path)
    cfg = make_cfg(WEIGHTS=path)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    for component in MODULES:
        check_arrival(model, component, {n: t.to(dtype).float() for n, t in of(component, states).items()})


def test_names_of_the_full_size_model_are_counted_and_loaded(tmp_path):
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
    projector = {"0.0.weight": (1024, 1024), "0.0.bias": (1024,), "0.2.weight": (256, 1024), "0.2.bias": (256,)}
    for name, shape in projector.items():
        state[f"evf_sam2.text_hidden_fcs.{name}"] = torch.zeros(1).expand(shape)
    assert len(state) == 3805
    torch.save({"model": state}, tmp_path / "model_final.pth")

    with mock.patch("openworldsam.checkpoint.layouts.check_tensor"):  # which refuses such tensors
        file = read_weights(tmp_path / "model_final.pth")
    counts = {component: len(part) for component, part in file.components.items()}
    assert counts == {"sam2": 900, "beit3": 971, "adapter": 59}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the adapter's values are copied into the void
        for component in file.components:
            load_component(model, component, file)
    assert not any(p.is_meta for m in model.frozen_modules for p in m.state_dict().values())
    assert sum(math.prod(t.shape) for t in file.components["sam2"].values()) - 256 == 224_430_130


@pytest.mark.parametrize("side", [64, 16])
def test_beit3_weights_load_at_another_image_size(side, states, make_model):
    model = make_model(PROMPT_ENCODER__IMAGE_SIZE=side)
    file = weight_file("beit3", dict(states["beit3"]))
    before = file.source("beit3")
    load_component(model, "beit3", file)
    loaded = model.prompt_encoder.beit3.encoder.embed_positions
    assert len(loaded.A.weight) == 3 + (side // 16) ** 2 != len(states["beit3"][POSITIONS])
    assert torch.equal(loaded.A.weight[:3], states["beit3"][POSITIONS][:3])
    assert not loaded.A.weight.requires_grad
    assert torch.equal(loaded.B.weight, states["beit3"]["beit3.encoder.embed_positions.B.weight"])
    assert file.source("beit3") == before


# ----------------------------------------------------------------------------------------------- strictness


@pytest.fixture(scope="module")
def refusal(make_cfg):
    """Loads a state of a component that does not fit and returns the message; the model may not have changed."""
    model = OpenWorldSAM(make_cfg())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def load(component, state):
        with pytest.raises(ValueError) as caught:
            load_component(model, component, weight_file(component, state))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert "given.pt" in str(caught.value)
        return str(caught.value)

    return load


@pytest.mark.parametrize("component", MAPPING)
def test_each_single_missing_tensor_is_named(component, states, refusal):
    state = of(component, states)
    for name in MAPPING[component]:
        message = refusal(component, {n: t for n, t in state.items() if n != name})
        assert "missing" in message and name.split(".", 1)[-1] in message


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("sam2", "sam_mask_decoder.iou_token.bias"),
        ("sam2", "module.beit3.x"),
        ("sam2", "head.weight"),
        ("sam2", "image_encoder.trunk.blocks.77.norm1.weight"),
        ("beit3", "beit3.encoder.layers.9.ffn.A.fc1.weight"),
        ("adapter", "adapter.projector.4.weight"),
    ],
)
def test_an_unexpected_tensor_is_named(component, name, states, refusal):
    message = refusal(component, {**of(component, states), name: torch.zeros(3)})
    assert "unexpected" in message and name.split(".", 1)[1] in message


@pytest.mark.parametrize(
    ("component", "name", "shapes"),
    [
        ("sam2", "sam_mask_decoder.iou_token.weight", [(7, 9), (5,), (), (0, 256)]),
        ("beit3", "beit3.encoder.layers.0.ffn.A.fc1.weight", [(7, 9), (5,), (), (0, 256)]),
        ("beit3", "beit3.text_embed.weight", [(5,)]),
        ("beit3", POSITIONS, [(8, 32), (2, 32), (12,)]),  # five patches are no square
        ("adapter", "adapter.projector.2.weight", [(7, 9), (5,), (), (0, 256)]),
        ("adapter", "adapter.tie_breakers", [()]),
    ],
)
def test_a_wrongly_shaped_tensor_is_named_with_both_shapes(component, name, shapes, states, refusal):
    state = of(component, states)
    for shape in shapes:
        message = refusal(component, {**state, name: torch.zeros(shape)})
        assert all(part in message for part in (name.split(".", 1)[1], str(shape), str(tuple(state[name].shape))))


def test_many_problems_are_counted_not_listed(states, refusal):
    message = refusal("beit3", {"beit3.text_embed.weight": states["beit3"]["beit3.text_embed.weight"]})
    assert message.count("missing") == 4
    assert f"{len(states['beit3']) - 1 - 4} more" in message and "MODEL.ADAPTER" not in message


@pytest.mark.parametrize(
    ("stages", "name"),
    [([1, 2, 7, 2], "tiny"), ([1, 2, 11, 2], "small"), ([2, 3, 16, 3], "base_plus"), ([2, 6, 36, 4], "large")],
)
def test_a_hiera_of_another_size_is_named(stages, name, refusal):
    message = refusal("sam2", sam2_state("2.0", stages=stages, global_att_blocks=[sum(stages) - 5]))
    assert f"{sum(stages)} blocks ({name}). The default is large" in message and "configs/encoders/" in message
    assert name == "large" or (ENCODERS / f"sam2_hiera_{name}.yaml").is_file()


@pytest.mark.parametrize(("width", "name"), [(768, "base"), (1024, "large")])
def test_a_beit3_of_another_size_is_named(width, name, refusal):
    message = refusal("beit3", beit3_state(width))
    assert f"width {width} ({name})" in message and "configs/encoders/beit3_base.yaml" in message
    assert (ENCODERS / "beit3_base.yaml").is_file()


@pytest.mark.parametrize(("queries", "layers"), [(20, 3), (3, 2), (4, 2), (4, 1), (5, 4), (0, 3), (4, 0), (0, 0)])
def test_an_adapter_of_another_size_gets_the_keys_to_set(queries, layers, refusal, make_model):
    state = our_adapter(released_adapter(queries=max(1, queries), layers=layers))
    if not queries:
        del state["adapter.tie_breakers"]
    message = refusal("adapter", state)
    assert f"MODEL.ADAPTER.NUM_TIE_BREAKERS {queries} " in message and f"MODEL.ADAPTER.NUM_LAYERS {layers}." in message
    model = make_model(ADAPTER__NUM_TIE_BREAKERS=queries, ADAPTER__NUM_LAYERS=layers)
    load_component(model, "adapter", weight_file("adapter", state))  # the advice is right
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_a_training_may_begin_with_the_first_tie_breakers_of_an_adapter(refusal, make_model):
    state = our_adapter(released_adapter(queries=20))
    refusal("adapter", state)  # but nothing else may
    model = make_model()
    wanted = model.adapter.num_queries
    load_component(model, "adapter", weight_file("adapter", state), fewer_tie_breakers=True)
    assert wanted < 20 and torch.equal(model.adapter.tie_breakers, state["adapter.tie_breakers"][:wanted])


@pytest.mark.parametrize("weights", ["adapter.safetensors", "model_final.pth"])
def test_tie_breakers_beyond_those_of_the_file_are_drawn(weights, files, states, make_cfg, log):
    def load(queries, **how):
        keys = {"WEIGHTS": files[weights], "SAM2__WEIGHTS": files["sam2_hiera.pt"]}
        cfg = make_cfg(**keys, PROMPT_ENCODER__WEIGHTS=files["beit3.pth"], ADAPTER__NUM_TIE_BREAKERS=queries)
        sources = load_weights(model := OpenWorldSAM(cfg), cfg, **how)
        return model.adapter.tie_breakers.detach(), sources["adapter"]

    learned, source = load(4)
    assert torch.equal(learned, states["adapter"]["adapter.tie_breakers"]) and "drawn" not in log.text
    grown, grown_source = load(9)
    assert grown.shape == (9, 256) and torch.equal(grown[:4], learned) and len(grown.unique(dim=0)) == 9
    assert "5 of 9 tie-breakers are drawn, not learned" in log.text
    assert grown_source == replace(source, note="5 of 9 tie-breakers are drawn, not learned")
    torch.manual_seed(1)  # changes nothing
    assert torch.equal(load(6)[0], grown[:6]) and torch.equal(load(9, need_adapter=False)[0], grown)


def test_where_the_file_has_no_tie_breakers_none_are_drawn(refusal, make_model):
    state = our_adapter(released_adapter(queries=1))
    for tie_breakers in ({}, {"adapter.tie_breakers": torch.zeros(0, 256)}):
        del state["adapter.tie_breakers"]
        state |= tie_breakers
        assert "MODEL.ADAPTER.NUM_TIE_BREAKERS 0 " in refusal("adapter", state)
        with pytest.raises(ValueError, match=r"adapter\.tie_breakers"):  # nor where a training starts
            load_component(make_model(), "adapter", weight_file("adapter", state), fewer_tie_breakers=True)
        state["adapter.tie_breakers"] = torch.zeros(1, 256)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_another_kind_of_numbers_is_refused(dtype, refusal, states):
    state = {name: tensor.to(dtype) for name, tensor in states["adapter"].items()}
    message = refusal("adapter", state)
    assert f"is {dtype}, in the model float32".replace("torch.", "") in message and "55 more" in message


@pytest.mark.parametrize("name", ["text_hidden_fcs.1.0.weight", "criterion.empty_weight", "visual_modelX.weight"])
def test_an_unknown_tensor_of_a_full_checkpoint_is_named(name, files, tmp_path, make_cfg):
    state = torch.load(files["bare.pth"], mmap=True)
    torch.save({"model": {**state, name: torch.zeros(2)}}, tmp_path / "more.pth")
    cfg = make_cfg(WEIGHTS=tmp_path / "more.pth")
    with pytest.raises(ValueError, match=name):
        load_weights(OpenWorldSAM(cfg), cfg)


def test_a_shard_of_the_index_that_lost_a_tensor_is_noticed(states, tmp_path, make_model):
    index = write_shards(tmp_path / "shards", states["beit3"], "safetensors")
    shard = index.parent / "model-00001-of-00002.safetensors"
    part = load_file(shard)
    lost = next(name for name in part if name in states["beit3"] and "layers.1." in name)
    save_file({name: tensor for name, tensor in part.items() if name != lost}, shard)
    with pytest.raises(ValueError, match=lost.replace(".", r"\.")):
        load_component(make_model(), "beit3", read_weights(index))


# ----------------------------------------------------------------------------------------------- the wrong files


@pytest.fixture
def refused(files, make_cfg):
    """The message about a config whose three files are right but for the given ones."""
    right = {
        "WEIGHTS": files["adapter.safetensors"],
        "SAM2__WEIGHTS": files["sam2_hiera.pt"],
        "PROMPT_ENCODER__WEIGHTS": files["beit3.pth"],
    }

    def load(**keys):
        cfg = make_cfg(**{**right, **keys})
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            load_weights(OpenWorldSAM(cfg), cfg)
        return str(caught.value)

    return load


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
def test_a_file_of_the_wrong_kind_names_the_key(key, name, layout, files, refused):
    message = refused(**{key: files[name]})
    assert f"MODEL.{key.replace('__', '.')} needs them" in message
    assert str(files[name]) in message and f"({layout})" in message


@pytest.mark.parametrize("name", ["sam2_hiera.pt", "beit3.pth"])
def test_an_encoder_alone_is_no_adapter(name, files, refused):
    message = refused(WEIGHTS=files[name])
    assert message.startswith("no weights for adapter (only sam2 from ") and ", beit3 from " in message
    assert message.endswith("): set MODEL.WEIGHTS to an adapter file")


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("WEIGHTS", "to an adapter file"),
        ("SAM2__WEIGHTS", "(openworldsam download sam2_hiera_large)"),
        ("PROMPT_ENCODER__WEIGHTS", "(openworldsam download beit3_large, or evf_sam2_multitask as the "),
    ],
)
def test_a_component_without_a_file_names_its_key_and_command(missing, advice, refused):
    assert f"set MODEL.{missing.replace('__', '.')} {advice}" in refused(**{missing: ""})


def test_no_file_at_all_names_the_one_that_holds_everything(refused):
    message = refused(WEIGHTS="", SAM2__WEIGHTS="", PROMPT_ENCODER__WEIGHTS="")
    assert message.startswith("no weights: set MODEL.WEIGHTS ") and "openworldsam_coco" in message


@pytest.mark.parametrize("key", ["WEIGHTS", "SAM2__WEIGHTS", "PROMPT_ENCODER__WEIGHTS"])
def test_a_missing_file_is_named(key, tmp_path, refused):
    assert "nowhere.pth not found" in refused(**{key: tmp_path / "nowhere.pth"})
