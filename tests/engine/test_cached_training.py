"""Training from the feature cache is training without it."""

import pytest
import torch
from trainings import read_metrics, run

from openworldsam.checkpoint import read_weights
from openworldsam.engine.cache_features import build_cache
from openworldsam.engine.train import run_training
from openworldsam.engine.trainer import Trainer


def losses(folder):
    lines = read_metrics(folder)
    return torch.tensor([line["total_loss"] for line in lines if "total_loss" in line])


@pytest.mark.parametrize(("dtype", "rtol"), [("fp32", 1e-5), ("bf16", 1e-2)])
@pytest.mark.parametrize("image_features", ["none", "all"])
def test_the_losses_are_those_without_a_cache(make_cfg, tmp_path, dtype, rtol, image_features):
    opts = ["SOLVER.LOG_PERIOD", 1, "SOLVER.PICTURE_PERIOD", 3]
    run(make_cfg("plain", *opts))
    cfg = make_cfg("cached", *opts)
    build_cache(cfg, tmp_path / "cache", image_features=image_features, dtype=dtype)
    cfg.DATASETS.FEATURE_CACHE = str(tmp_path / "cache")
    run(cfg)
    torch.testing.assert_close(losses(tmp_path / "cached"), losses(tmp_path / "plain"), rtol=rtol, atol=0)
    metadata = [read_weights(tmp_path / f"{name}/adapter.safetensors").metadata for name in ("cached", "plain")]
    assert metadata[0] == metadata[1]


def test_a_fresh_start_is_the_same_with_and_without_a_cache(make_cfg, tiny_weights, tmp_path):
    encoders = str(tiny_weights / "model_final.pth")
    opts = ["MODEL.SAM2.WEIGHTS", encoders, "MODEL.PROMPT_ENCODER.WEIGHTS", encoders]
    opts += ["SOLVER.INIT_WEIGHTS", "fresh", "MODEL.SCORE_HEAD.HIDDEN", 8, "MODEL.CRITERION.SCORE_WEIGHT", 1.0]
    cfg = make_cfg("cached", *opts)
    build_cache(cfg, tmp_path / "cache", image_features="none")
    cfg.DATASETS.FEATURE_CACHE = str(tmp_path / "cache")
    plain, cached = (Trainer(c).model for c in (make_cfg("plain", *opts), cfg))
    for module in ("adapter", "score_head"):
        begun = getattr(cached, module).state_dict()
        assert all(torch.equal(begun[name], value) for name, value in getattr(plain, module).state_dict().items())


def test_the_prompt_encoder_is_not_loaded(make_cfg, tmp_path):
    cfg = make_cfg("out", "MODEL.PROMPT_ENCODER.TOKENIZER", "nowhere.spm")
    real = make_cfg()
    build_cache(real, tmp_path / "cache")
    cfg.DATASETS.FEATURE_CACHE = str(tmp_path / "cache")
    trainer = Trainer(cfg)
    assert not list(trainer.model.prompt_encoder.parameters())
    run_training(trainer)


def test_resuming_from_the_cache_is_exact_and_may_change_to_it(make_cfg, tmp_path):
    cfg = make_cfg("out", "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", [])
    build_cache(cfg, tmp_path / "cache", dtype="fp32")
    run(cfg)
    cached = make_cfg("out", "DATASETS.FEATURE_CACHE", str(tmp_path / "cache"))
    resumed = run(cached, resume=True)
    whole = run(make_cfg("whole"))
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.FLIP", True], "INPUT.FLIP is on"),
        (["MODEL.PROMPT_ENCODER.USE_IMAGE", False], "USE_IMAGE is True, not False"),
        (["TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ["refcocog_umd_val"]], "TEST.EVAL_PERIOD needs the prompt encoder"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(make_cfg, tmp_path, opts, message):
    build_cache(make_cfg(), tmp_path / "cache")
    opts = [*opts, "DATASETS.FEATURE_CACHE", str(tmp_path / "cache")]
    with pytest.raises(ValueError, match=message):
        Trainer(make_cfg("out", *opts))


def test_a_damaged_cache_is_not_taken_for_bad_images(make_cfg, tmp_path):
    cfg = make_cfg()
    build_cache(cfg, tmp_path / "cache")
    cfg.DATASETS.FEATURE_CACHE = str(tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match="shard"):
        run(cfg)


def test_a_prompt_that_the_cache_lacks_is_named(make_cfg, tmp_path):
    cfg = make_cfg()
    build_cache(cfg, tmp_path / "cache")
    cfg.DATASETS.FEATURE_CACHE = str(tmp_path / "cache")
    trainer = Trainer(cfg)
    trainer.dataset.mapper.class_names = ("lynx", "grass", "sky")
    with pytest.raises(KeyError, match=r"lynx.*openworldsam cache"):
        run_training(trainer)
