"""The paper's numbers stand only beside what is comparable; otherwise a line says why not."""

from pathlib import Path

import pytest

from openworldsam.checkpoint.layouts import Source
from openworldsam.config import load_config
from openworldsam.evaluation.comparison import PRESETS, Comparison, comparison
from openworldsam.evaluation.paper_tables import CITYSCAPES_TRAIN, Number
from openworldsam.evaluation.summary import incomparable, remarks, table

ROOT = Path(__file__).parents[2]
COCO = "coco_2017_train_panoptic_openworldsam"
SIZES = {"ade20k_150_val": 2000, "refcocog_umd_val": 1300, "cityscapes_19_val": 500, "coral_val": 7}


def sources(trained_on=COCO, **notes):
    """The public weights, and an adapter trained on some datasets; or others, as (layout, note)."""
    public = {"sam2": ("SAM 2.0", ""), "beit3": ("BEiT-3", ""), "adapter": ("adapter", "")} | notes
    return {
        name: Source(name, layout, "0", note, trained_on if name == "adapter" else "")
        for name, (layout, note) in public.items()
    }


def compared(*opts, preset="paper", **origin):
    cfg = load_config(ROOT / f"configs/presets/{preset}.yaml", [*map(str, opts)])
    return comparison(cfg, sources(**origin))


@pytest.mark.parametrize(
    ("opts", "row"),
    [
        ([], "OpenWorldSAM"),
        (["MODEL.INFERENCE.TWO_STAGE", True], "+ two-stage inference"),
        (["MODEL.ADAPTER.NUM_LAYERS", 0], "E3"),
        (["MODEL.ADAPTER.NUM_LAYERS", 0, "MODEL.ADAPTER.NUM_TIE_BREAKERS", 0], "E1"),
        (["MODEL.PROMPT_ENCODER.TRAINABLE", True], "E6"),
        (["MODEL.PROMPT_ENCODER.USE_IMAGE", False], "BEiT-3-Large, text"),
        (["MODEL.PRECISION", "bf16", "MODEL.MASK_DECODER.CHUNK", 4, "TEST.PROMPT_CAPS", True], "OpenWorldSAM"),
    ],
)
def test_the_papers_model_has_its_row(opts, row):
    assert compared(*opts) == Comparison(row)


def test_the_released_model_has_its_row():
    files = dict.fromkeys(("sam2", "beit3", "adapter"), ("released", ""))
    assert compared(preset="released", **files) == Comparison("OpenWorldSAM")
    split = dict.fromkeys(("sam2", "beit3"), ("SAM 2.0", "from model_final.pth (released)"))
    assert compared(preset="released", **split).row == "OpenWorldSAM"
    for preset, rules in PRESETS.items():
        adapter = load_config(ROOT / f"configs/presets/{preset}.yaml").MODEL.ADAPTER
        assert rules == (adapter.FUSION, adapter.INTERACTION)


@pytest.mark.parametrize(
    ("opts", "origin", "reason"),
    [
        (["MODEL.SAM2.STAGES", [1, 2, 7, 2]], {}, "MODEL.SAM2.STAGES is [1, 2, 7, 2], the paper's [2, 6, 36, 4]"),
        (["MODEL.SAM2.IMAGE_SIZE", 512], {}, "MODEL.SAM2.IMAGE_SIZE is 512, the paper's 1024"),
        (["MODEL.PROMPT_ENCODER.EMBED_DIM", 768], {}, "MODEL.PROMPT_ENCODER.EMBED_DIM is 768, the paper's 1024"),
        (["MODEL.ADAPTER.NUM_TIE_BREAKERS", 10], {}, "MODEL.ADAPTER.NUM_TIE_BREAKERS is 10, the paper's 20"),
        (["MODEL.ADAPTER.FUSION", "add"], {}, "MODEL.ADAPTER.FUSION is add, the paper's replace"),
        (["MODEL.INFERENCE.SCORE", "match"], {}, "MODEL.INFERENCE.SCORE is match, the paper's iou"),
        (["MODEL.INFERENCE.SCORE_THRESHOLD", 0.5], {}, "MODEL.INFERENCE.SCORE_THRESHOLD is 0.5, the paper's 0.7"),
        (["TEST.TEMPLATE", "a {name}"], {}, "TEST.TEMPLATE is a {name}, the paper's {name}"),
        (["PRESET", "mine"], {}, "preset mine is not the paper's model"),
        (["MODEL.PROMPT_ENCODER.USE_IMAGE", False, "MODEL.INFERENCE.TWO_STAGE", True], {}, "its tables have no row"),
        ([], {"sam2": ("SAM 2.1", "")}, "its SAM2 is 2.1, the paper's 2.0"),
        ([], {"beit3": ("EVF-SAM2", "")}, "its beit3 weights are those of the released code"),
        ([], {"beit3": ("BEiT-3", "from model_final.pth (released)")}, "its beit3 weights are those of the released"),
        ([], {"sam2": ("SAM 2.0", "made by rule")}, "its sam2 weights are not the public ones (made by rule)"),
        ([], {"adapter": ("released", "made by rule")}, "its adapter weights are not the public ones"),
        (
            [],
            {"adapter": ("adapter", "16 of 20 tie-breakers are drawn, not learned")},
            "its adapter weights are not the",
        ),
        ([], {"trained_on": ""}, "the adapter was trained on what its file does not say"),
        ([], {"trained_on": "reef_train"}, "the adapter was trained on reef_train"),
        ([], {"trained_on": f"{COCO}, a, b"}, f"the adapter was trained on {COCO}, a, b, the paper's on {COCO} first"),
    ],
)
def test_another_model_has_none(opts, origin, reason):
    found = compared(*opts, **origin)
    assert (found.row, found.tuned_on) == (None, "") and found.reason.startswith(reason)


def test_preset_improved_and_the_tiny_and_small_models_have_none(tiny_cfg):
    assert compared(preset="improved").reason == "preset improved is not the paper's model"
    assert comparison(tiny_cfg, sources()).reason.startswith("MODEL.SAM2.IMAGE_SIZE is 128")
    shapes = load_config(ROOT / "configs/shapes/paper.yaml")
    assert comparison(shapes, sources()).row is None


def results(**changed):
    """What was measured on all of `SIZES`, changed in every one."""
    plain = {"protocol": "oracle", "skipped": {}, "remarks": {}}
    return {
        name: {**plain, "images": size, "dataset_images": size, **scores(name), **changed}
        for name, size in SIZES.items()
    }


def scores(name):
    return {"referring": {"cIoU": 61.0}} if name == "refcocog_umd_val" else {"semantic": {"mIoU": 61.0}}


def papers(paper, content):
    """The paper's numbers in the table, by benchmark."""
    lines = [line.split() for line in table(content, paper).splitlines()[2:]]
    return {words[0]: words[-3:] for words in lines if "." in words[-2]}


def test_the_table_has_what_was_measured_the_papers_number_and_the_difference():
    found = papers(Comparison("OpenWorldSAM"), results())
    assert found == {"ade20k_150_val": ["60.4", "+0.60", "1"], "cityscapes_19_val": ["39.4", "+21.60", "8"]}
    header = table(results(), Comparison("OpenWorldSAM")).splitlines()[0].split()
    assert header == ["benchmark", "protocol", "images", "metric", "measured", "paper", "difference", "table"]
    content = results()
    content["ade20k_150_val"]["semantic"] = {"mIoU": None}
    assert table(content, Comparison("OpenWorldSAM")).splitlines()[2].split()[-3:] == ["n/a", "60.4", "1"]


def test_only_a_fine_tuned_adapter_is_compared_on_the_benchmark_of_its_tuning():
    content = results()
    tuned = comparison(load_config(ROOT / "configs/presets/paper.yaml"), sources(f"{COCO}, refcocog_umd_train"))
    assert papers(tuned, content) == {"refcocog_umd_val": ["74.0", "-13.00", "3"]}
    reason = "the adapter was fine-tuned on refcocog_umd_train, the paper's trained on COCO"
    others = ("ade20k_150_val", "cityscapes_19_val")
    assert incomparable(content, tuned) == [f"{name}: not compared with the paper: {reason}" for name in others]
    plain = [line for line in incomparable(content, Comparison("OpenWorldSAM")) if line.startswith("refcocog")]
    assert plain == [
        "refcocog_umd_val: not compared with the paper: the adapter was trained on COCO, the paper's fine-tuned on "
        "refcocog_umd_train"
    ]
    driving = papers(Comparison("OpenWorldSAM", CITYSCAPES_TRAIN), content)
    assert driving == {"cityscapes_19_val": ["57.4", "+3.60", "8"]}
    assert Comparison("OpenWorldSAM", CITYSCAPES_TRAIN).number(
        ("bdd10k_19_val", "semantic", "mIoU"), {"images": 1000, "protocol": "oracle"}
    ) == (Number(38.0, 8), "")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"protocol": "global"}, "the protocol is global, the paper's oracle"),
        ({"images": 30}, "30 of 2000 images were scored"),
    ],
)
def test_other_protocols_and_parts_of_a_benchmark_are_not_compared(changed, reason):
    content = results(**changed)
    assert not papers(Comparison("OpenWorldSAM"), content)
    assert f"ade20k_150_val: not compared with the paper: {reason}" in remarks(content, Comparison("OpenWorldSAM"))
    assert not any("coral" in line for line in remarks(content, Comparison("OpenWorldSAM")))


def test_the_reason_of_a_run_is_said_once_and_only_of_the_papers_benchmarks():
    paper, content = Comparison(reason="preset mine is not the paper's model"), results()
    assert incomparable(content, paper) == [f"not compared with the paper: {paper.reason}"]
    assert incomparable({"coral_val": content["coral_val"]}, paper) == []


def test_a_part_of_a_dataset_is_said_in_the_table():
    assert "30 of 2000" in table(results(images=30))
    assert " of " not in table(results())
