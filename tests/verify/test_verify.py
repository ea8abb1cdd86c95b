"""Verification of weight files: their content, the public files they equal, the fusion they were trained with."""

import argparse
import hashlib
import json

import numpy as np
import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from openworldsam.checkpoint import load_weights, read_weights
from openworldsam.config import load_config
from openworldsam.data.datasets import register_datasets
from openworldsam.data.datasets.catalog import load_records
from openworldsam.evaluation.benchmark import evaluation_dataset
from openworldsam.evaluation.calibration import true_masks
from openworldsam.evaluation.examples import Unreadable
from openworldsam.inference import Queries
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.adapter import FUSIONS
from openworldsam.verify import run, verify
from openworldsam.verify.fusions import best_iou, compare_fusions, panoptic_records, rank, verdict
from openworldsam.verify.inspection import compare, inspect_weights
from openworldsam.verify.report import markdown, summary


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Keep the weights and datasets of this machine out of reach."""
    monkeypatch.setenv("OPENWORLDSAM_WEIGHTS", str(tmp_path / "no weights"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "no datasets"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoint(tiny_weights, tmp_path):
    """Write the rule-made checkpoint, some of its tensors changed; returns its path."""

    def write(change=lambda state: None):
        content = torch.load(tiny_weights / "model_final.pth")
        change(content["model"])
        torch.save(content, tmp_path / "model_final.pth")
        return tmp_path / "model_final.pth"

    return write


@pytest.fixture
def coco(tmp_path):
    """A folder of COCO panoptic data: a listed image with a cat (1) on grass (2), and one whose file is missing."""
    folder = tmp_path / "coco"
    for name in ("images", "panoptic"):
        (folder / name).mkdir(parents=True)
    ids = np.full((40, 60), 2, np.uint8)
    ids[10:30, 10:40] = 1
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "images/1.jpg")
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=2)).save(folder / "panoptic/1.png")
    segments = [{"id": i, "category_id": c, "iscrowd": 0, "area": 1} for i, c in ((1, 17), (2, 193))]
    numbers = (1, 2)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in numbers],
        "annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in numbers],
        "categories": COCO_CATEGORIES,
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    return folder


def odd(content):
    return [line for line in summary(content) if line.startswith("odd")]


def test_what_a_rule_made_checkpoint_holds(checkpoint):
    path = checkpoint()
    content = inspect_weights(path)
    whole = path.read_bytes()
    assert (content["bytes"], content["sha256"]) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert (content["layout"], content["note"]) == ("released", "rule-made, not trained, seed 0")
    file = read_weights(path)
    assert content["components"].keys() == {"sam2", "beit3", "adapter"}
    for name, facts in content["components"].items():
        values = torch.cat([tensor.flatten() for tensor in file.components[name].values()])
        assert facts["fingerprint"] == file.source(name).fingerprint
        assert (facts["tensors"], facts["parameters"]) == (len(file.components[name]), len(values))
        assert (facts["smallest"], facts["largest"]) == (values.min(), values.max())
        assert facts["rms"] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-4)
        assert facts["formats"] == {"float32": facts["tensors"]} and facts["constant"] == facts["unusual"] == []
    copies = sum(len(file.components[name]) for name in ("sam2", "beit3"))
    assert content["copies"] == {"tensors": 2 * copies + 59, "copies": copies, "differing": [], "not_read": 0}


def test_odd_tensors_are_named(checkpoint):
    def change(state):
        state["evf_sam2.text_hidden_fcs.0.0.bias"] = torch.ones(3)  # EVF-SAM2's own projector, which nothing reads
        state["evf_sam2.visual_model.no_mem_embed"] = state["visual_model.no_mem_embed"] + 1
        state["positional_tokens"] = torch.full_like(state["positional_tokens"], 0.5).half()
        state["mm_extractor.beit3.vision_embed.cls_token"][0, 0, 0] = -1001

    content = inspect_weights(checkpoint(change))
    assert content["copies"]["not_read"] == 1
    assert content["components"]["adapter"]["formats"] == {"float32": 58, "float16": 1}
    assert odd({**content, "fusions": None, "loads": ""}) == [
        "odd: 1 second copies that differ from the first, such as evf_sam2.visual_model.no_mem_embed",
        "odd: 1 tensors of beit3 with values beyond 1,000, such as beit3.vision_embed.cls_token",
        "odd: 1 constant tensors of adapter, as before a training, such as adapter.tie_breakers",
    ]


def test_components_are_compared_with_public_files_at_hand(checkpoint, tmp_path, monkeypatch):
    path = checkpoint()
    components = read_weights(path).components
    torch.save({"model": components["sam2"]}, tmp_path / "sam2_hiera_large.pt")
    near = {name: 1.01 * tensor for name, tensor in components["beit3"].items()}
    (tmp_path / "no weights").mkdir()
    torch.save({"model": near}, tmp_path / "no weights/beit3_large_patch16_224.pth")  # the weights folder
    other = {"beit3.text_embed.weight": torch.ones(2, 2)}
    torch.save({"model": other}, tmp_path / "beit3_base_patch16_224.pth")
    content = inspect_weights(path)
    number = len(near)
    assert content["compared"]["beit3"] == {
        "beit3_base_patch16_224.pth": {"tensors": number, "comparable": 0, "equal": 0, "difference": None},
        "beit3_large_patch16_224.pth": {
            **{"tensors": number, "comparable": number, "equal": 0},
            "difference": pytest.approx(0.01, rel=1e-4),
        },
    }
    lines = summary({**content, "fusions": None, "loads": ""})
    assert f"sam2: equal to that of sam2_hiera_large.pt in all {len(components['sam2'])} tensors" in lines
    assert (
        f"beit3: equal to none at hand; closest is beit3_large_patch16_224.pth, 0 of {number} tensors equal, relative "
        "difference 0.01; `openworldsam download evf_sam2_multitask evf_sam2 beit3_large` fetches the files to compare "
        "with"
    ) in lines


def test_comparison_of_tensors():
    ours = {"same": torch.tensor([3.0]), "moved": torch.tensor([4.0]), "shape": torch.zeros(2), "own": torch.ones(1)}
    theirs = {"same": torch.tensor([3.0]).half(), "moved": torch.tensor([1.0]), "shape": torch.zeros(3)}
    assert compare(ours, theirs) == {"tensors": 4, "comparable": 2, "equal": 1, "difference": 3 / 5}


def test_best_iou():
    left, everything = [[1.0, -1.0], [1.0, -1.0]], [[1.0, 1.0], [1.0, 1.0]]
    logits = torch.tensor([left, everything, everything, everything])
    queries = Queries(logits, torch.ones(4), torch.tensor([0, 0, 1, 2]))
    column, row = np.array([[1, 0], [1, 0]], bool), np.array([[1, 1], [0, 0]], bool)
    truth = [np.stack([column, row]), None, np.zeros((0, 2, 2), bool)]
    assert best_iou(queries, truth) == 75  # 1, and the larger of 1/3 and 1/2


def test_rank():
    found = rank({"replace": [40, 50], "add": [50, 70], "broadcast": [50, 70]})
    assert found == {
        "best": "add",
        "leads": {"broadcast": {"mean": 0, "error": 0}, "replace": {"mean": 15, "error": pytest.approx(5)}},
    }
    assert rank({"replace": [1], "add": [2]}) == {"best": "add", "leads": {"replace": {"mean": 1, "error": None}}}
    assert rank({"replace": [], "add": []}) == {"best": None, "leads": {}}


@pytest.mark.parametrize(
    ("images", "iou", "errors", "expected"),
    [
        (5, 80.0, (1.0, 1.0), "trained with add (5 images, mean IoU 80.0 %; replace is 4.0 ± 1.0 points behind, "),
        (
            5,
            80.0,
            (2.0, 1.0),
            "not decided, 5 images do not tell add from replace; -o TEST.MAX_IMAGES 25 takes more; br",
        ),
        (
            4,
            80.0,
            (1.0, 1.0),
            "not decided, 4 images do not tell add from replace from broadcast; -o TEST.MAX_IMAGES 20",
        ),
        (5, 29.0, (0.1, 0.1), "not decided, none finds what it is asked for (best: add, mean IoU 29.0 %)"),
        (0, None, (), "not decided, no image could be scored"),
    ],
)
def test_verdict(images, iou, errors, expected):
    leads = {f: {"mean": 4.0, "error": e} for f, e in zip(("replace", "broadcast"), errors, strict=False)}
    found = {"images": images, "best": "add" if images else None, "mean_iou": {"add": iou}, "leads": leads}
    assert verdict(found).startswith(f"fusion: {expected}")


def test_fusions_equal_models_that_are_built_with_them(build, tiny_cfg):
    tiny_cfg.merge_from_list(["DATASETS.SHAPES.SIZE", 64, "DATASETS.SHAPES.THING_SIZE", [10, 40]])
    register_datasets(tiny_cfg)
    dataset = evaluation_dataset(tiny_cfg, "shapes_val", load_records("shapes_val")[:3])
    model = build()
    found = compare_fusions(model, dataset)
    assert found["images"] == 3 and not found["skipped"] and model.adapter.fusion == tiny_cfg.MODEL.ADAPTER.FUSION
    for fusion in FUSIONS:
        expected = []
        for inputs, truth in map(dataset.__getitem__, range(3)):
            own = build("MODEL.ADAPTER.FUSION", fusion)
            with torch.no_grad():
                embeddings = own.encode_prompts(
                    own.prompt_inputs([inputs["image"]]),
                    inputs["prompts"],
                    torch.zeros(len(inputs["prompts"]), dtype=int),
                )
                queries = own.queries(own.encode_images([inputs["image"]]), embeddings)
            expected.append(best_iou(queries, true_masks((inputs, truth))))
        assert found["mean_iou"][fusion] == pytest.approx(np.mean(expected))
    assert len(set(found["mean_iou"].values())) == 3


def test_an_unreadable_image_is_skipped(build, tiny_cfg, monkeypatch):
    register_datasets(tiny_cfg)
    dataset = evaluation_dataset(tiny_cfg, "shapes_val", load_records("shapes_val")[:1])
    monkeypatch.setattr(type(dataset), "__getitem__", lambda self, index: Unreadable("a.jpg", "is damaged"))
    found = compare_fusions(build(), dataset)
    assert list(found["skipped"].values()) == ["is damaged"] and found["images"] == 0 and found["best"] is None


def test_shapes_weights_were_not_trained_with_broadcast(paper_opts):
    """They were trained with `replace`, which few images do not tell from `add`."""
    cfg = load_config("shapes/paper", paper_opts)
    register_datasets(cfg)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    found = compare_fusions(model.eval(), evaluation_dataset(cfg, "shapes_val", load_records("shapes_val")[:12]))
    assert "broadcast is " in verdict(found) and found["best"] != "broadcast" and found["mean_iou"]["replace"] > 80


def test_the_command_writes_a_report(checkpoint, tiny_weights, coco, tmp_path, capsys):
    opts = ["MODEL.PROMPT_ENCODER.TOKENIZER", str(tiny_weights / "beit3.spm")]
    given = argparse.Namespace(
        weights=str(checkpoint()), images=coco, config="tiny", opts=opts, output=tmp_path / "out"
    )
    run(given)
    content = json.loads((tmp_path / "out/verify.json").read_text())
    page = (tmp_path / "out/verify.md").read_text()
    assert page == markdown(content) and "## Fusions" in page and "| adapter" in page
    assert content["fusions"]["images"] == 1 and content["fusions"]["skipped"] == {} and content["loads"] == ""
    assert content["fusions"]["mean_iou"].keys() == set(FUSIONS)
    shown = capsys.readouterr().out.splitlines()
    said = summary(content)
    assert shown[-2 - len(said) : -2] == said and shown[-2] == str(tmp_path / "out/verify.md")
    given.opts = [*opts, "MODEL.ADAPTER.NUM_LAYERS", "2"]
    with pytest.raises(SystemExit) as stopped:
        run(given)
    assert stopped.value.code == 1
    content = json.loads((tmp_path / "out/verify.json").read_text())
    assert content["fusions"] is None and "NUM_LAYERS 3" in content["loads"]
    assert "fusion: not tried, the weights do not fit the config" in summary(content)
    given.weights = "gone.pth"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(given)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: weight file gone.pth not found beside the config")


def test_without_images_no_tokenizer_is_needed(checkpoint, tmp_path):
    content = verify(checkpoint(), config="tiny", opts=["MODEL.PROMPT_ENCODER.TOKENIZER", "nowhere.spm"])
    assert content["fusions"] is None and content["loads"] == ""
    assert any(line.startswith("fusion: not tried, no COCO panoptic images") for line in summary(content))


def test_images_are_found_where_coco_has_them(coco, tmp_path, monkeypatch, caplog):
    root = tmp_path / "datasets/coco"
    (root / "annotations").mkdir(parents=True)
    (coco / "panoptic.json").rename(root / "annotations/panoptic_val2017.json")
    (coco / "images").rename(root / "val2017")
    (coco / "panoptic").rename(root / "panoptic_val2017")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    for folder in (None, root, root.parent):
        assert [record["image_id"] for record in panoptic_records(folder)] == [1]


def test_bad_input_is_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth not found"):
        verify("gone.pth", config="tiny")
    with pytest.raises(
        FileNotFoundError, match=r"empty has no COCO panoptic images: no annotations/panoptic_val2017\.js"
    ):
        verify(checkpoint(), tmp_path / "empty", config="tiny")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.pth is damaged or not a checkpoint \(it is a web page\)"):
        verify(tmp_path / "page.pth", config="tiny")
