"""Hard negatives: how they are chosen, and trainings with them, which resume, divide and cache like all others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from trainings import Losses, assert_same, register, trained, training_cfg

from openworldsam.checkpoint import load_weights, read_weights
from openworldsam.engine.cache_features import build_cache
from openworldsam.engine.confusions import Confusions
from openworldsam.engine.trainer import Trainer
from openworldsam.modeling import OpenWorldSAM

VOCABULARY = ("cat", "grass", "sky", "dog", "lynx", "red car", "red ball", "road", "tree")
GROUPS = ("animal", "", "", "animal", "animal", "", "", "", "")
TOGETHER = ["MODEL.SCORE_HEAD.HIDDEN", 16, "MODEL.CRITERION.SCORE_WEIGHT", 1.0, "INPUT.NEGATIVES", 2]
ALONE = [*TOGETHER, "MODEL.ADAPTER.TRAINABLE", False, "MODEL.CRITERION.MASK_WEIGHT", 0.0]
NO_DROPOUT = ["MODEL.ADAPTER.DROPOUT", 0.0, "MODEL.SCORE_HEAD.DROPOUT", 0.0]
HALF = ["SOLVER.MAX_ITER", 3, "SOLVER.STEPS", []]


def cfg_with_negatives(data, weights, output, *opts):
    """The config of a training on the rectangles, of whose vocabulary most is absent everywhere."""
    name = register(Path(data))
    MetadataCatalog.pop(name)
    MetadataCatalog.get(name).set(vocabulary=VOCABULARY, is_thing=(True,) * len(VOCABULARY), groups=GROUPS)
    return training_cfg(Path(data), Path(weights), Path(output), *opts)


def train(data, weights, output, opts, resume=False):
    losses = Losses()
    trainer = trained(cfg_with_negatives(data, weights, output, *opts), resume, [losses])
    parameters = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return {"losses": losses.values, "trained": parameters, "confusions": trainer.confusions.scores}


@pytest.fixture
def run(data, tiny_weights, tmp_path):
    return lambda folder, *opts, resume=False: train(data, tiny_weights, tmp_path / folder, opts, resume)


def inputs(*absent, draws):
    """An image with two present prompts, and absent ones."""
    prompts = ["cat", "sky", *absent]
    return {
        "image_id": 7, "prompts": prompts, "class_ids": list(range(len(prompts))), "is_thing": [True] * len(prompts),
        "targets": [torch.ones(1, 2, 2)] * 2 + [torch.zeros(0, 2, 2)] * len(absent), "negative_draws": draws,
        "prompt_embeddings": torch.arange(len(prompts))[:, None].float(),
    }  # fmt: skip


def test_present_prompts_stay_and_absent_ones_are_chosen():
    chosen = Confusions(2).choose(inputs("dog", "lynx", "car", draws=[0.9, 0.1, 0.5]))
    assert chosen["prompts"] == ["cat", "sky", "dog", "car"] and chosen["class_ids"] == [0, 1, 2, 4]
    assert chosen["prompt_embeddings"].flatten().tolist() == [0, 1, 2, 4]
    assert [len(target) for target in chosen["targets"]] == [1, 1, 0, 0] and len(chosen["is_thing"]) == 4
    assert chosen["image_id"] == 7 and len(chosen["negative_draws"]) == 2
    few = Confusions(5).choose(inputs("dog", draws=[0.3]))
    assert few["prompts"] == ["cat", "sky", "dog"]
    assert Confusions(0).choose(inputs(draws=[]))["prompts"] == ["cat", "sky"]


def test_what_is_confused_is_chosen_more_often():
    confusions, generator = Confusions(1), np.random.default_rng(0)
    confusions.scores = {"dog": 0.85, "lynx": 0.05}  # with the floor: 0.9 and 0.1
    draws = generator.random((5000, 2)).tolist()
    dogs = sum("dog" in confusions.choose(inputs("dog", "lynx", draws=each))["prompts"] for each in draws)
    assert dogs / 5000 == pytest.approx(0.9, abs=0.02)


def test_the_mean_runs():
    confusions = Confusions(2)
    confusions.update([("dog", 1.0), ("lynx", 0.2)])
    assert confusions.scores == {"dog": 1.0, "lynx": pytest.approx(0.2)}
    confusions.update([("dog", 0.5), ("dog", 0.0)])
    assert confusions.scores["dog"] == pytest.approx(0.8 * (0.8 * 1.0 + 0.2 * 0.5))


def test_only_absent_prompts_are_counted_with_their_own_scores(make_cfg, monkeypatch):
    trainer, noted = Trainer(make_cfg()), []
    monkeypatch.setattr(trainer.confusions, "update", noted.append)
    first, second = inputs("dog", draws=[0.1]), inputs("lynx", "car", draws=[0.1, 0.2])
    trainer._note_confusions([[first], [second]], [0.9, 0.8, 0.0, 0.7, 0.6, 0.2, 0.3])
    assert noted == [[("dog", 0.0)], [("lynx", 0.2), ("car", 0.3)]]


@pytest.mark.parametrize("opts", [TOGETHER, ALONE], ids=["together", "alone"])
def test_resuming_equals_never_having_stopped(run, opts):
    whole = run("whole", *opts)
    run("parts", *opts, *HALF)
    resumed = run("parts", *opts, resume=True)
    assert resumed["losses"] == whole["losses"][3:] and resumed["confusions"] == whole["confusions"]
    assert_same(resumed["trained"], whole["trained"])
    assert len(whole["confusions"]) > 3 and set(whole["confusions"]) < set(VOCABULARY)
    assert len(set(whole["confusions"].values())) > 3
    assert {name.split(".")[0] for name in whole["trained"]} == (
        {"adapter", "score_head"} if opts is TOGETHER else {"score_head"}
    )


@pytest.mark.parametrize("opts", [TOGETHER, ALONE], ids=["together", "alone"])
def test_processes_and_micro_batches_change_nothing(run, processes, data, tiny_weights, tmp_path, opts):
    opts = [*opts, *NO_DROPOUT, "SOLVER.IMS_PER_BATCH", 4, *HALF]
    one = run("one", *opts)
    micro = run("micro", *opts, "SOLVER.ACCUMULATE", 2)
    args = (data, tiny_weights, tmp_path / "two", [*opts, "SOLVER.ACCUMULATE", 2])
    for other in (micro, *processes.values(train, *args, processes=2)):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert other["confusions"] == pytest.approx(one["confusions"], rel=1e-3)


@pytest.mark.parametrize("image_features", ["none", "all"])
def test_a_cache_holds_all_candidates(run, data, tiny_weights, head_opts, tmp_path, image_features):
    opts = [*TOGETHER, *head_opts]  # a random head would depend on what else is made at random
    plain = run("plain", *opts)
    cfg = cfg_with_negatives(data, tiny_weights, tmp_path / "cached", *TOGETHER)  # there is no head yet
    build_cache(cfg, tmp_path / "cache", image_features=image_features, dtype="fp32")
    cached = run("cached", *opts, "DATASETS.FEATURE_CACHE", str(tmp_path / "cache"))
    assert cached["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert cached["confusions"] == pytest.approx(plain["confusions"], rel=1e-3)


def test_a_head_trained_alone_goes_beside_its_adapter(run, data, tiny_weights, tmp_path):
    head = run("alone", *ALONE)["trained"]
    assert not (tmp_path / "alone/adapter.safetensors").exists()
    path = tmp_path / "alone/score_head.safetensors"
    cfg = cfg_with_negatives(data, tiny_weights, tmp_path, *TOGETHER[:4], "MODEL.SCORE_HEAD.WEIGHTS", str(path))
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg)
    assert sources["score_head"].trained_on == f"rectangles_{data.name}"
    assert_same({f"score_head.{name}": p for name, p in model.score_head.named_parameters()}, head)


def test_a_head_trained_together_is_in_the_adapters_file_and_is_trained_on(run, data, tiny_weights, tmp_path):
    first = run("first", *TOGETHER)["trained"]
    file = read_weights(tmp_path / "first/adapter.safetensors")
    assert file.components.keys() == {"adapter", "score_head"}
    assert_same({name: tensor for part in file.components.values() for name, tensor in part.items()}, first)
    start = ["SOLVER.INIT_WEIGHTS", str(file.path), "MODEL.SAM2.WEIGHTS", str(tiny_weights / "model_final.pth")]
    start += ["MODEL.PROMPT_ENCODER.WEIGHTS", str(tiny_weights / "model_final.pth")]
    trainer = Trainer(cfg_with_negatives(data, tiny_weights, tmp_path / "second", *TOGETHER, *start))
    assert_same({n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}, first)


def test_resuming_beside_another_adapter_is_refused(run, data, tiny_weights, tmp_path):
    run("adapter", *HALF[:2], *HALF[2:])
    other = ["SOLVER.INIT_WEIGHTS", str(tmp_path / "adapter/adapter.safetensors")]
    other += [f"MODEL.{part}.WEIGHTS" if w else str(tiny_weights / "model_final.pth")
              for part in ("SAM2", "PROMPT_ENCODER") for w in (True, False)]  # fmt: skip
    run("out", *ALONE, *HALF)
    with pytest.raises(ValueError, match="was trained with another adapter; use another OUTPUT_DIR"):
        run("out", *ALONE, *other, resume=True)


def test_a_head_alone_needs_an_adapter(run, tiny_weights):
    start = ["SOLVER.INIT_WEIGHTS", "fresh", "MODEL.SAM2.WEIGHTS", str(tiny_weights / "model_final.pth")]
    start += ["MODEL.PROMPT_ENCODER.WEIGHTS", str(tiny_weights / "model_final.pth")]
    with pytest.raises(ValueError, match=r"no weights for adapter .*MODEL\.WEIGHTS"):
        run("out", *ALONE, *start)
