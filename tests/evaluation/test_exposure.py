"""Training data exposure: hand-made provenance gives lines, and the table is complete and equal to that in the docs."""

from pathlib import Path

import pytest
import torch

from openworldsam.checkpoint.layouts import read_weights
from openworldsam.data.datasets import coco, referring, shapes
from openworldsam.data.datasets.benchmarks import EXPECTED_IMAGES
from openworldsam.download import REGISTRY
from openworldsam.evaluation.exposure import (
    DATASETS,
    LABELS,
    NONE_KNOWN,
    PUBLIC,
    SHARED,
    UNKNOWN,
    dataset_of,
    exposed,
    exposure,
)
from openworldsam.modeling import PROMPT_ENCODER_REGISTRY

ROOT = Path(__file__).parents[2]
COCO, COCO_VAL = "coco_2017_train_panoptic_openworldsam", "coco_2017_val_panoptic_openworldsam"
ENCODERS = {encoder.component.name for _, encoder in PROMPT_ENCODER_REGISTRY if encoder.component}
INDOOR = ("sun_rgbd_37_val", "scannet_20_panoptic_val")
SHAPES_NOTE = "trained on the Shapes world, 12000 steps of 8 scenes"


def source(file, note="", trained_on=""):
    return {"file": file, "layout": "its own", "fingerprint": "0", "note": note, "trained_on": trained_on}


def model(beit3, sam2="sam2_hiera_large.pt", trained_on=COCO, note=""):
    """Provenance of public encoders and an adapter."""
    adapter = source("adapter.safetensors", trained_on=trained_on)
    return {"sam2": source(sam2), "beit3": source(beit3, note), "adapter": adapter}


def test_what_the_encoder_of_the_released_code_has_seen():
    names = ["ade20k_150_val", "ade20k_847_val", "ade20k_100_instance_val", "pascal_voc_20_val", *INDOOR]
    lines = [
        "EVF-SAM2-multitask's BEiT-3 has seen ADE20K images and labels: not zero-shot",
        "EVF-SAM2-multitask's BEiT-3 has seen PASCAL VOC images with labels of parts: not zero-shot",
        "exposure to SUN RGB-D, ScanNet is unknown: EVF-SAM2-multitask's BEiT-3 was trained on web images, "
        "human-parsing data",
    ]
    assert exposure(model("evf-sam2-multitask.safetensors"), names) == lines
    assert exposure(model("evf-sam2-multitask"), names) == lines  # the folder of shards
    released = exposure(model("model_final.pth", "model_final.pth"), names)
    split = model("beit3.safetensors", note="from model_final.pth (released)")
    split["sam2"] = source("sam2.safetensors", "from model_final.pth (released)")
    assert exposure(split, names) == released
    other = "the released BEiT-3 (taken for EVF-SAM2-multitask's)"
    assert released == [line.replace("EVF-SAM2-multitask's BEiT-3", other) for line in lines]


def test_referring_data_of_the_other_evf_sam2_are_no_labels_of_coco():
    assert exposure(model("evf-sam2.safetensors", trained_on="shapes_train"), [COCO_VAL, "refcoco_unc_testA"]) == [
        "EVF-SAM2's BEiT-3 has seen COCO images with expressions: not zero-shot",
        "EVF-SAM2's BEiT-3 has seen RefCOCO images and labels: not zero-shot",
    ]


@pytest.mark.parametrize(
    ("trained_on", "benchmark", "seen"),
    [
        (COCO, COCO_VAL, "COCO images and labels"),
        (COCO, "refcocog_umd_val", "RefCOCOg images with class labels"),
        (f"{COCO}, refcocog_umd_train", "refcocog_umd_val", "RefCOCOg images and labels"),
        ("refcocog_umd_train", "grefcoco_val", "gRefCOCO images with expressions"),
        ("pascal_voc_20_train", "pascal_context_459_val", "PASCAL Context images with other labels"),
        (f"{COCO}, cityscapes_19_panoptic_train", "cityscapes_19_val", "Cityscapes images and labels"),
    ],
)
def test_an_adapter_is_judged_by_its_training_sets(trained_on, benchmark, seen):
    weights = {"adapter": source("a.safetensors", trained_on=trained_on)}
    assert exposure(weights, [benchmark]) == [f"the adapter has seen {seen}: not zero-shot"]
    weights["score_head"] = weights["adapter"]
    assert exposure(weights, [benchmark]) == [f"the adapter and the score head have seen {seen}: not zero-shot"]
    weights["score_head"] = source("b.safetensors", trained_on="bdd10k_19_train")
    assert exposure(weights, ["bdd10k_19_val"]) == ["the score head has seen BDD10K images and labels: not zero-shot"]


def test_custom_training_data_may_have_shown_anything():
    weights = {"adapter": source("a.safetensors", trained_on=f"{COCO}, reef_train")}
    assert exposure(weights, ["bdd10k_19_val", COCO_VAL]) == [
        "the adapter has seen COCO images and labels: not zero-shot",
        "exposure to BDD10K is unknown: the adapter was trained on reef_train",
    ]


@pytest.mark.parametrize("benchmark", ["ade20k_150_val", "scannet_40_val", "cityscapes_19_val"])
def test_nothing_is_said_where_none_is_known(benchmark):
    weights = {"sam2": source("sam2.1_hiera_tiny.pt"), "adapter": source("a.safetensors", trained_on=COCO)}
    assert exposure(weights, [benchmark]) == []


def test_of_shapes_there_is_nothing_to_say():
    ours = {name: source(f"{name}.safetensors", SHAPES_NOTE) for name in ("sam2", "beit3")}
    ours["adapter"] = source("adapter.safetensors", trained_on="shapes_train")
    assert exposure(ours, shapes.SPLITS) == exposure(model("evf-sam2"), shapes.SPLITS) == []
    assert exposure(ours, ["ade20k_150_val"]) == [
        f"exposure to ADE20K is unknown: training data not known (sam2, sam2.safetensors, {SHAPES_NOTE}); "
        f"training data not known (beit3, beit3.safetensors, {SHAPES_NOTE})"
    ]


@pytest.mark.parametrize(
    ("component", "known", "record"),
    [
        ("sam2", source("mine.pt"), "sam2, mine.pt"),
        ("beit3", source("beit3_large_patch16_224.pth", "trained together with the adapter"), None),
        ("beit3", source("sam2_hiera_large.pt"), "beit3, sam2_hiera_large.pt"),
        ("beit3", source("beit3.safetensors", "from mine.pth (BEiT-3)"), None),
        ("letters", source("letters.safetensors"), "letters, letters.safetensors"),
        ("adapter", source("adapter.safetensors"), "adapter, adapter.safetensors"),
        ("score_head", {}, "score head"),
        ("sam2", {"fingerprint": "1"}, "sam2"),
    ],
)
def test_unknown_weights_are_named_once(component, known, record):
    record = record or f"{component}, {known['file']}, {known['note']}"
    line = f"exposure to COCO, ADE20K is unknown: training data not known ({record})"
    assert exposure({component: known}, ["ade20k_150_val", COCO_VAL, "ade20k_847_val", "shapes_val"]) == [line]


def test_exposure_to_custom_data_is_unknown():
    known = {"adapter": source("a", trained_on=COCO)}
    line = "exposure to reef_val, b_val is unknown: not a public benchmark"
    assert exposure(known, ["reef_val", "b_val", "ade20k_150_val"]) == [line]


def test_every_benchmark_and_training_set_has_a_dataset():
    expressions = {f"{b.prefix}_{split}" for b in referring.REFERRING.values() for split in b.splits}
    names = {*EXPECTED_IMAGES, *coco.DATASETS, *expressions, *shapes.SPLITS}
    assert {dataset_of(name) for name in names} == set(DATASETS)
    for name in names:
        assert sum(name.startswith(prefix) for prefix in DATASETS.values()) == 1
    assert {dataset for shared in SHARED.values() for dataset in shared} <= DATASETS.keys()
    assert dataset_of("reef_val") == ""


def test_every_public_file_has_entries():
    stems = {Path(weight.filename).stem for name, weight in REGISTRY.items() if name != "beit3_tokenizer"}
    assert stems == {file for weights in PUBLIC for file in weights.files}
    for stem in stems:
        components = [weights.component for weights in PUBLIC if stem in weights.files]
        kind = stem.split("_")[0]
        expected = {"beit3": ["beit3"], "sam2": ["sam2"], "sam2.1": ["sam2"]}
        if any(Path(weight.filename).stem == stem and weight.files for weight in REGISTRY.values()):
            assert {name for joined in components for name in joined.split(" or ")} <= ENCODERS - {"beit3"}
        else:
            assert components == expected.get(kind, ["sam2", "beit3", "adapter"])


@pytest.mark.parametrize("name", ["model_final", "model_final_refcocog"])
def test_a_released_adapter_is_recorded_with_what_the_table_says(name, tmp_path):
    tensors = dict.fromkeys(("visual_model.a", "mm_extractor.b", "positional_tokens"), torch.zeros(1))
    torch.save({"model": tensors}, tmp_path / f"{name}.pth")
    trained_on = read_weights(tmp_path / f"{name}.pth").source("adapter").trained_on
    (entry,) = (weights for weights in PUBLIC if weights.component == "adapter" and name in weights.files)
    assert tuple(map(dataset_of, trained_on.split(", "))) == entry.trained_on


def test_the_docs_have_the_tables():
    public = {dataset: tuple(exposed(each.trained_on, dataset) for each in PUBLIC) for dataset in DATASETS}
    groups = {}
    for dataset, column in public.items():
        if dataset != "Shapes":
            groups.setdefault(column, []).append(dataset)
    lines = [["weights", *map(", ".join, groups.values())]]
    lines += [[each.name, *(column[row] for column in groups)] for row, each in enumerate(PUBLIC)]
    lines += [[each.name, ", ".join(each.trained_on), each.source] for each in PUBLIC]
    text = (ROOT / "docs/evaluation.md").read_text()
    section = text.split("## Training data exposure\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert rows == [*lines[: len(PUBLIC) + 1], ["weights", "training data", "source"], *lines[len(PUBLIC) + 1 :]]
    assert {LABELS, UNKNOWN, NONE_KNOWN} < {cell for row in rows for cell in row}
