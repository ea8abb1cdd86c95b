import json
from pathlib import Path

import pytest

from openworldsam.config import load_config
from openworldsam.inference import InferenceOptions
from openworldsam.modeling import Adapter

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_is_read_and_says_something(path):
    cfg = load_config(path)
    InferenceOptions.from_config(cfg)
    Adapter(cfg, embed_dim=8)
    assert cfg.VERSION == 2


def test_the_paper_preset_is_the_default():
    from detectron2.config import get_cfg

    from openworldsam.config import add_openworldsam_config

    defaults = get_cfg()
    add_openworldsam_config(defaults)
    assert load_config(ROOT / "configs/presets/paper.yaml") == defaults


def test_presets_differ_where_the_paper_and_the_release_do():
    presets = {name: load_config(ROOT / f"configs/presets/{name}.yaml") for name in ("paper", "released", "improved")}
    assert {n: c.PRESET for n, c in presets.items()} == {n: n for n in presets}
    assert {n: c.MODEL.ADAPTER.FUSION for n, c in presets.items()} == {
        "paper": "replace", "released": "broadcast", "improved": "add",
    }  # fmt: skip
    assert [c.MODEL.ADAPTER.INTERACTION for c in presets.values()] == ["prompt", "image", "prompt"]
    assert [c.MODEL.INFERENCE.INSTANCE_NMS for c in presets.values()] == ["mask", "box", "mask"]


def test_bases_can_be_listed(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"VERSION: 2\n_BASE_: [{ROOT}/configs/presets/released.yaml, {ROOT}/configs/encoders/sam2_hiera_tiny.yaml]\n"
    )
    cfg = load_config(path)
    assert (cfg.PRESET, cfg.MODEL.SAM2.EMBED_DIM) == ("released", 96)


@pytest.mark.parametrize(
    ("opts", "error", "message"),
    [
        (["MODEL.ADAPTOR.FUSION", "add"], KeyError, "ADAPTOR"),
        (["MODEL.ADAPTER.FUSION"], ValueError, "pairs"),
        (["MODEL.ADAPTER.NUM_LAYERS", "many"], ValueError, "NUM_LAYERS"),
        (["TEST.MAX_IMAGES", "None"], ValueError, "TEST.MAX_IMAGES has no usable value, got None"),
        (["MODEL.INFERENCE.SCORE_THRESHOLD", "1e999"], ValueError, "SCORE_THRESHOLD has no usable value, got inf"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(opts, error, message):
    with pytest.raises(error, match=message):
        load_config(ROOT / "configs/presets/paper.yaml", opts)


def test_an_unknown_key_in_a_file_is_an_error(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("VERSION: 2\nMODEL:\n  ADAPTER:\n    FUSSION: add\n")
    with pytest.raises(KeyError, match="FUSSION"):
        load_config(path)


@pytest.mark.parametrize("content", [b"a: [1\n", b"\x89PNG\r\n\x1a\n\xff", b"- a\n- b\n"])
def test_a_file_that_is_no_config_is_an_error(tmp_path, content):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.yaml is not a config file"):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_written_config_is_read_back_the_same(path, tmp_path):
    """A training writes its config, and caches are compared by it."""
    cfg = load_config(path)
    (tmp_path / "written.yaml").write_text(cfg.dump())
    read = load_config(tmp_path / "written.yaml")
    assert json.dumps(read) == json.dumps(cfg)  # tuples come back as lists


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("SOLVER.MOMENTUM", 0.8, "the optimizer is AdamW"),
        ("SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.BASE_LR holds for biases"),
        ("SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH counts the images of all processes"),
        ("SOLVER.AMP.ENABLED", True, "MODEL.PRECISION"),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", False, "always clipped, to SOLVER.CLIP_GRADIENTS.CLIP_VALUE"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "always leaves out images without objects"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "an epoch has each image once"),
        ("DATALOADER.REPEAT_THRESHOLD", 0.1, "an epoch has each image once"),
        ("INPUT.CROP.ENABLED", True, "INPUT.LARGE_SCALE_JITTER"),
        ("INPUT.RANDOM_FLIP", "none", "INPUT.FLIP"),
        ("INPUT.MIN_SIZE_TRAIN", (640,), "MODEL.SAM2.IMAGE_SIZE"),
        ("INPUT.FORMAT", "BGR", "images are RGB"),
        ("TEST.AUG.ENABLED", True, "sees each image once"),
        ("TEST.DETECTIONS_PER_IMAGE", 50, "MODEL.INFERENCE.TOP_K"),
        ("VIS_PERIOD", 100, "SOLVER.PICTURE_PERIOD"),
        ("MODEL.MASK_ON", True, "leave it out"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "leave it out"),
    ],
)
def test_a_key_of_detectron2_without_effect_is_refused_with_what_to_do(key, value, instead):
    with pytest.raises(ValueError, match=rf"^{key} is Detectron2's and has no effect here, got .*; .*{instead}"):
        load_config(ROOT / "configs/presets/paper.yaml", [key, value])


def test_the_default_of_a_key_without_effect_may_be_said(tmp_path):
    (tmp_path / "said.yaml").write_text("VERSION: 2\nVIS_PERIOD: 0\nINPUT: {FORMAT: RGB, MIN_SIZE_TRAIN: [800]}\n")
    load_config(tmp_path / "said.yaml")
