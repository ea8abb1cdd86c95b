"""EVF-SAM2 as published (configs/baselines/evf_sam2.yaml), from its file alone."""

import copy
import json
from pathlib import Path

import pytest
import torch
from published import beit3_model, by_transformers, evf_state, sam2_model, with_prefix, write_shards
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from openworldsam import OpenWorldSAMPredictor, cli
from openworldsam.checkpoint import load_weights, provenance
from openworldsam.config import load_config
from openworldsam.engine.checks import check_training
from openworldsam.evaluation.exposure import exposure
from openworldsam.modeling import OpenWorldSAM
from openworldsam.preflight import check_weights

CONFIGS = Path(__file__).parents[2] / "configs"
NAME = "evf-sam2-multitask"
PROMPTS = ["a red circle", "ring", "the largest of all blue stars"]


@pytest.fixture(scope="module")
def modules():
    """The publishers' own modules with random weights: SAM2 with its video part, BEiT-3, and the projector."""
    torch.manual_seed(0)
    projector = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 256))
    found = {"sam2": sam2_model("2.0"), "beit3": beit3_model(), "projector": projector}
    with torch.no_grad():
        for parameter in (p for module in found.values() for p in module.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))  # many begin as zeros or ones
    return {name: module.eval() for name, module in found.items()}


@pytest.fixture(scope="module")
def evf(modules):
    """Their tensors under the names of the published file."""
    projector = with_prefix("text_hidden_fcs.0.", modules["projector"].state_dict())
    return evf_state(modules["sam2"].state_dict(), with_prefix("beit3.", modules["beit3"].state_dict()), projector)


@pytest.fixture
def write(tmp_path):
    """Write a file of EVF-SAM2's layout; returns its path."""

    def to_file(state, suffix="safetensors"):
        path = tmp_path / f"{NAME}.{suffix}"
        if suffix == "safetensors":
            save_file(state, path, metadata={"format": "pt"})
        else:
            torch.save(state, path)
        return path

    return to_file


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The config that ships, but with the sizes of configs/tiny.yaml."""
    path = tmp_path_factory.mktemp("config") / "evf_sam2.yaml"
    bases = f"[{CONFIGS}/tiny.yaml, {CONFIGS}/baselines/evf_sam2.yaml]"
    path.write_text(f"VERSION: 2\n_BASE_: {bases}\nMODEL:\n  SAM2:\n    WIDTH: 256\n")
    return path


@pytest.fixture
def read(config, tiny_weights):
    """The config of a file."""
    tokenizer = ["MODEL.PROMPT_ENCODER.TOKENIZER", str(tiny_weights / "beit3.spm")]
    return lambda path, *opts: load_config(config, ["MODEL.WEIGHTS", str(path), *tokenizer, *opts])


def by_hand(modules, image, ids):
    """Mask logits [P, h, w] and predicted IoU [P] of P texts about an image of SAM2's input size, uint8 [3, H, W]."""
    sam2, beit3, projector = (modules[name] for name in ("sam2", "beit3", "projector"))
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    levels = sam2.forward_image(((image - mean[:, None, None]) / std[:, None, None])[None])["backbone_fpn"]
    small = F.interpolate(image[None].float() / 255, (32, 32), mode="bicubic", align_corners=False)
    seen = ((small - 0.5) / 0.5).expand(len(ids), -1, -1, -1)
    fused = beit3(textual_tokens=ids, visual_tokens=seen, text_padding_position=ids == 1)["encoder_out"][:, 0]
    no_points, dense = sam2.sam_prompt_encoder(points=None, boxes=None, masks=None)
    logits, iou, _, _ = sam2.sam_mask_decoder(
        image_embeddings=levels[2] + sam2.no_mem_embed.view(1, -1, 1, 1),
        image_pe=sam2.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=torch.cat([no_points.expand(len(ids), -1, -1), projector(fused)[:, None]], dim=1),
        dense_prompt_embeddings=dense.expand(len(ids), -1, -1, -1),
        multimask_output=False,
        repeat_image=True,
        high_res_features=levels[:2],
    )
    return logits[:, 0], iou[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spelling", ["safetensors", "bin", "wrapped", "sharded safetensors", "sharded bin"])
def test_masks_are_those_of_the_publishers_modules(spelling, dtype, modules, evf, write, read, tmp_path):
    rounded = {name: copy.deepcopy(module).to(dtype).float() for name, module in modules.items()}
    # its positional encoding is a buffer of random numbers, which a file has in its format too
    state = {name: tensor.to(dtype) for name, tensor in evf.items()}
    if spelling.startswith("sharded"):
        path = write_shards(tmp_path / NAME, state, spelling.split()[1]).parent
    else:
        path = write(by_transformers(state) if spelling == "wrapped" else state, spelling.replace("wrapped", "bin"))
    cfg = read(path)
    model = OpenWorldSAM(cfg).eval()
    sources = load_weights(model, cfg)
    assert {name: source.layout for name, source in sources.items()} == dict.fromkeys(
        ("sam2", "beit3", "adapter"), "EVF-SAM2"
    )
    image = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, iou = by_hand(rounded, image, model.prompt_encoder.tokenizer(PROMPTS))
    (answer,) = model.answer([{"image": image, "prompts": PROMPTS}], ["referring"])
    found = answer["referring"]
    assert len(logits.unique(dim=0)) == len(PROMPTS) and logits.std() > 0.05
    torch.testing.assert_close(found.logits, logits, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(found.scores, iou, atol=1e-4, rtol=1e-3)
    full = F.interpolate(logits[:, None], (128, 128), mode="bilinear", align_corners=False)[:, 0]
    assert ((full > 0) != found.masks).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("removed", "added", "problem"),
    [
        ("text_hidden_fcs.0.2.bias", None, "missing adapter.projector.2.bias"),
        ("mm_extractor.beit3.text_embed.weight", None, "missing prompt_encoder.beit3.text_embed.weight"),
        ("visual_model.no_mem_embed", None, "missing image_encoder.no_mem_embed"),
        (None, "text_hidden_fcs.0.4.weight", "unexpected adapter.projector.4.weight"),
        (None, "text_hidden_fcs.1.0.weight", "unexpected text_hidden_fcs.1.0.weight"),
        (None, "criterion.weight", "unexpected criterion.weight"),
        (None, "visual_model.head.weight", "unexpected head.weight"),
    ],
)
def test_a_missing_or_unexpected_tensor_is_named_in_a_line(removed, added, problem, evf, write, read):
    state = {name: tensor for name, tensor in evf.items() if name != removed}
    if added:
        state[added] = torch.zeros(2, 3)
    cfg = read(write(state))
    with pytest.raises(ValueError) as caught:
        load_weights(OpenWorldSAM(cfg), cfg)
    assert problem in str(caught.value) and f"{NAME}.safetensors (EVF-SAM2)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_projector_has_no_adapter(evf, write, read):
    cfg = read(write({name: tensor for name, tensor in evf.items() if not name.startswith("text_hidden_fcs")}))
    with pytest.raises(ValueError, match="no weights for adapter"):
        load_weights(OpenWorldSAM(cfg), cfg)


def test_the_projector_does_not_become_a_whole_adapter(evf, write, make_cfg):
    path = write(evf)
    cfg = make_cfg(WEIGHTS=path)
    for need_adapter in (True, False):
        with pytest.raises(ValueError, match=r"NUM_TIE_BREAKERS 0 .* use configs/baselines/evf_sam2\.yaml; "):
            load_weights(OpenWorldSAM(cfg), cfg, need_adapter=need_adapter)
    cfg = make_cfg(SAM2__WEIGHTS=path, PROMPT_ENCODER__WEIGHTS=path)  # as the message says
    model = OpenWorldSAM(cfg)
    fresh = {name: tensor.clone() for name, tensor in model.adapter.state_dict().items()}
    assert load_weights(model, cfg, need_adapter=False).keys() == {"sam2", "beit3"}
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in model.adapter.state_dict().items())


def test_a_training_is_refused_unless_there_is_something_to_train(evf, write, read):
    cfg = read(write(evf))
    with pytest.raises(ValueError, match=r"MODEL\.ADAPTER\.TRAINABLE False trains a score head alone") as caught:
        check_training(cfg)
    assert "\n" not in str(caught.value)
    cfg.MODEL.ADAPTER.TRAINABLE = True  # the paper's E1, from EVF-SAM2's projector
    check_training(cfg)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg, need_adapter=False)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"adapter.projector.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    assert torch.equal(model.adapter.projector[2].weight, evf["text_hidden_fcs.0.2.weight"])


def test_evaluation_of_referring_expressions(config, evf, write, tiny_weights, tmp_path, exit_status):
    opts = ["MODEL.WEIGHTS", write(evf), "MODEL.PROMPT_ENCODER.TOKENIZER", tiny_weights / "beit3.spm"]
    opts += ["TEST.MAX_IMAGES", 2, "DATALOADER.NUM_WORKERS", 0]
    output = ["--benchmarks", "shapes_refer_val", "--output", tmp_path / "out"]
    assert exit_status(cli.command("evaluate"), "--config", config, *output, *opts) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["benchmarks"]["shapes_refer_val"]["images"] == 2 and results["sentences"] == "all"
    assert 0 <= results["benchmarks"]["shapes_refer_val"]["referring"]["cIoU"] <= 100
    assert results["paper"] == {"row": None, "tuned_on": "", "reason": "preset evf_sam2 is not the paper's model"}
    assert {source["file"] for source in results["weights"].values()} == {f"{NAME}.safetensors"}


def test_a_saved_model_is_the_same_and_knows_its_training_data(evf, write, read, tmp_path, pictures):
    cfg = read(write(evf))
    predictor = OpenWorldSAMPredictor(cfg)
    predictor.save_pretrained(tmp_path / "saved")
    saved = OpenWorldSAMPredictor.from_pretrained(tmp_path / "saved")
    ours, theirs = (p(pictures[0], PROMPTS, task="referring") for p in (predictor, saved))
    assert (ours.masks == theirs.masks).all() and (ours.scores == theirs.scores).all() and len(ours) == len(theirs) > 0
    weights = provenance(cfg, predictor.sources)["weights"]
    names = [f"EVF-SAM2-multitask's {part}" for part in ("BEiT-3", "projector")]
    assert exposure(weights, ["refcocog_umd_val"]) == [
        f"{' and '.join(names)} have seen RefCOCOg images and labels: not zero-shot"
    ]
    again = provenance(cfg, saved.sources)["weights"]
    for component, source in weights.items():
        for benchmark in ("refcocog_umd_val", "ade20k_150_val", "cityscapes_19_val"):
            assert exposure({component: again[component]}, [benchmark]) == exposure({component: source}, [benchmark])


def test_a_missing_file_names_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENWORLDSAM_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`openworldsam download evf_sam2_multitask beit3_tokenizer`"):
        check_weights("baselines/evf_sam2")
