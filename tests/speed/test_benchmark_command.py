"""The benchmark from end to end on the tiny model, and what it is made of."""

import gc
import json
import runpy
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openworldsam import OpenWorldSAMPredictor, cli
from openworldsam.config import load_config
from openworldsam.modeling import OpenWorldSAM
from openworldsam.speed.measure import measure, operations_and_waits, peak_memory
from openworldsam.speed.pipeline import STAGES, Pipeline, coco_prompts, encoded_image
from openworldsam.speed.plain import PlainPipeline
from openworldsam.speed.training import CACHES, training_batch, training_step
from openworldsam.speed.waits import WaitCounter

main = cli.command("benchmark")

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs/tiny.yaml")
CPU = torch.device("cpu")
RANDOM = ["MODEL.WEIGHTS", ""]


@pytest.fixture(autouse=True, scope="module")
def freeze():
    """Collecting garbage, which comes before every measurement, would go through all that earlier tests have left."""
    gc.collect()
    gc.freeze()


def command(folder, *words):
    """The content of the json of a run with little to do."""
    Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(folder / "small.png")
    flags = ["--config-file", TINY, "--image", str(folder / "small.png"), "--output", str(folder), "--images", "1"]
    main([*flags, *words, "--repeats", "1", *RANDOM, "SOLVER.IMS_PER_BATCH", "1", "INPUT.MAX_PROMPTS", "2"])
    return json.loads((folder / "benchmark.json").read_text())


def of(content, work, configuration="tiny", **key):
    found = [r for r in content["records"] if r["work"] == work and r["configuration"] == configuration]
    (record,) = [r for r in found if all(r[name] == value for name, value in key.items())]
    return record


def pipelines(build, preset, **options):
    """Ours with the weights made by rule, and plain, about a photograph."""
    cfg = load_config(ROOT / f"configs/presets/{preset}.yaml")
    keys = ["MODEL.ADAPTER.FUSION", "MODEL.ADAPTER.INTERACTION", "MODEL.CRITERION.DIVISOR"]
    keys += ["MODEL.INFERENCE.INSTANCE_NMS", "MODEL.INFERENCE.SEMANTIC_WEIGHT"]
    opts = [item for key in keys for item in (key, cfg_value(cfg, key))]
    model = build(*opts)
    image = encoded_image(options.get("image"))
    tiny = load_config(TINY, opts)
    return Pipeline("ours", tiny, model, image, random=False), PlainPipeline(tiny, model, image, random=False)


def cfg_value(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def test_a_run_writes_figures_machine_and_versions(tmp_path, capsys):
    content = command(tmp_path, "--against", "plain", "--prompts", "2", "3")
    assert content["machine"]["cores"] and content["machine"]["processor"] and content["machine"]["memory_bytes"] > 1e8
    assert content["versions"]["torch"] == torch.__version__.split("+")[0] and content["date"].startswith("20")
    assert [c["name"] for c in content["configurations"]] == ["tiny", "plain"]
    assert [c["weights"] for c in content["configurations"]] == ["random", "random"]
    for prompts in (2, 3):
        whole = of(content, "whole", prompts=prompts)
        parts = [r for r in content["records"] if r["work"] in STAGES and r["prompts"] in (0, prompts)]
        assert whole["operations"] == sum(r["operations"] for r in parts if r["configuration"] == "tiny")
        assert whole["waits"] == sum(r["waits"] for r in parts if r["configuration"] == "tiny") > 0
        assert whole["prompts_per_s"] == pytest.approx(prompts / whole["median_s"])
        assert 0 < whole["floor_s"] < whole["median_s"]
        assert (
            of(content, "decoder", "plain", prompts=prompts)["operations"]
            > (of(content, "decoder", prompts=prompts)["operations"])
        )
    for cache in CACHES:
        assert of(content, f"training step, {cache}")["median_s"] > 0
    operations = [of(content, f"training step, {cache}")["operations"] for cache in CACHES]
    assert operations[0] > operations[1] > operations[2]
    assert of(content, "training step, no cache", "plain")["operations"] > operations[0]
    assert of(content, "evaluation on shapes_val")["images_per_s"] > 0
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "benchmark.md").read_text().strip()
    assert "time x" in printed and "the same image again" in printed
    ratios = printed.split("time x")[1]
    assert ratios.count("training step") == len(CACHES)  # plain has no cache: its step without stands against all


def test_a_config_against_itself_takes_the_same_operations(tmp_path):
    content = command(tmp_path, "--against", TINY, "--parts", "stages", "--prompts", "2")
    ours, other = ([r for r in content["records"] if r["configuration"] == n] for n in ("tiny", "tiny (2)"))
    assert len(ours) == len(other) == 7
    for a, b in zip(ours, other, strict=True):
        assert (a["work"], a["prompts"]) == (b["work"], b["prompts"])
        assert (a["operations"], a["bytes"]) == (b["operations"], b["bytes"])


def test_a_score_head_is_a_stage_of_models_that_have_one(tmp_path):
    with_head = tmp_path / "head.yaml"
    with_head.write_text(f"VERSION: 2\n_BASE_: {TINY}\nMODEL: {{SCORE_HEAD: {{HIDDEN: 8}}}}\n")
    content = command(tmp_path, "--against", str(with_head), "--parts", "stages", "--prompts", "2", "3")
    rated = [r for r in content["records"] if r["work"] == "score head"]
    assert [(r["configuration"], r["prompts"]) for r in rated] == [("head", 2), ("head", 3)]
    assert all(r["operations"] > 0 and r["bytes"] > 0 and r["median_s"] > 0 for r in rated)
    for prompts in (2, 3):
        whole, without = (of(content, "whole", name, prompts=prompts)["operations"] for name in ("head", "tiny"))
        assert whole - without == of(content, "score head", "head", prompts=prompts)["operations"]


def test_half_precision_and_compilation_are_runs_of_their_own(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f.__name__) or f)
    content = command(tmp_path, "--precision", "fp32", "bf16", "--compile", "--parts", "stages", "--prompts", "2")
    runs = {(r["precision"], r["compiled"]) for r in content["records"]}
    assert runs == {("fp32", False), ("bf16", False), ("fp32", True), ("bf16", True)}
    assert sorted(compiled) == sorted(2 * ["_call_impl", "first_token", "decode_masks"])  # the first: a module's own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "0", "--warmup", "1"], "--num-prompts, --warmup, --repeats and --images are 1 or more"),
        (["--image", "nowhere.jpg"], "image nowhere.jpg not found"),
        (["--against", "nowhere.yaml"], "nowhere.yaml not found"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--repeats", "1", "MODEL.INFERENCE.TWO_STAGE", "True"], "MODEL.INFERENCE.TWO_STAGE is not measured"),
        (["--against", "plain", "MODEL.PROMPT_ENCODER.NAME", "CachedPromptEncoder"], "plain needs BEiT-3"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as exited:
        main(["--config-file", TINY, "--output", str(tmp_path), *words, *RANDOM])
    error = capsys.readouterr().err
    assert exited.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("head", [False, True])
def test_the_stages_are_the_forward_pass(build, photograph, matching_opts, head):
    ours, _ = pipelines(build, "paper", image=str(photograph))
    if head:
        predictor = OpenWorldSAMPredictor(TINY, opts=matching_opts)
        ours = Pipeline("head", predictor.cfg, predictor.model, encoded_image(str(photograph)), random=False)
        ours.model.inference = inference = replace(ours.model.inference, score_threshold=0.05)
        ours.use("fp32", False)
        assert ours.model.inference is inference  # its threshold may come with the weights
    ours.ask(3)
    results = ours.whole().results
    x = {"image": ours.pixels(), "prompts": ours.prompts, "is_thing": ours.is_thing}
    (expected,) = ours.model([x])
    assert torch.equal(results["semantic"].map, expected["semantic"])
    assert torch.equal(results["panoptic"].map, expected["panoptic_seg"][0])
    assert torch.equal(results["instance"].masks, expected["instances"].pred_masks)
    assert len(results["instance"].masks)


def test_plain_computes_what_preset_released_does(build):
    ours, plain = pipelines(build, "released")
    for pipeline in (ours, plain):
        pipeline.ask(3)
    a, b = ours.whole(), plain.whole()
    torch.testing.assert_close(b.embeddings, a.embeddings, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.queries.logits, a.queries.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.queries.scores, a.queries.scores, rtol=1e-4, atol=1e-4)
    assert (b.results["semantic"].map != a.results["semantic"].map).float().mean() < 1e-3
    assert len(b.results["instance"].masks) == len(a.results["instance"].masks)


def test_plain_trains_as_preset_released_does(build):
    ours, plain = pipelines(build, "released")
    gradients = []
    for pipeline in (ours, plain):
        pipeline.ask(3)
        batch = training_batch(pipeline, 2, "no cache")
        pipeline.model.train()
        for module in pipeline.model.modules():
            if isinstance(module, (torch.nn.Dropout, torch.nn.MultiheadAttention)):
                module.eval()
        loss = pipeline.loss(batch)
        loss.backward()
        gradients.append([loss, *(p.grad for p in pipeline.model.adapter.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-8


def test_a_full_cache_trains_with_the_same_loss(build):
    ours, _ = pipelines(build, "paper")
    ours.ask(2)
    losses = []
    for cache in CACHES:
        torch.manual_seed(0)
        ours.model.train()
        batch = training_batch(ours, 1, cache)
        torch.manual_seed(0)
        losses.append(ours.loss(batch).item())
        assert ("prompt_embeddings" in batch[0], "image_embed" in batch[0]) == {
            "no cache": (False, False), "prompt cache": (True, False), "full cache": (True, True),
        }[cache]  # fmt: skip
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-2)


def test_a_step_updates_the_adapter_alone(build):
    ours, _ = pipelines(build, "paper")
    ours.ask(2)
    before = {name: p.clone() for name, p in ours.model.named_parameters()}
    training_step(ours, 1, "no cache")()
    changed = {name for name, p in ours.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.startswith("adapter.")}
    assert not ours.model.training


def test_plain_refuses_what_the_memory_cannot_hold(build, monkeypatch):
    _, plain = pipelines(build, "paper")
    monkeypatch.setattr("openworldsam.speed.plain.available_memory", lambda device: 2**28)
    plain.ask(10)
    with pytest.raises(MemoryError, match="needs about 0"):
        plain.ask(400)


def count_operations(call):
    return operations_and_waits(call, WaitCounter())[0]


def test_operations_of_products_and_of_attention_are_counted():
    a, q = torch.randn(3, 4), torch.randn(2, 4, 6, 8)
    assert count_operations(lambda: a @ a.T) == 2 * 3 * 4 * 3
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_operations(lambda: attention(q, q, q)) == 2 * 2 * (2 * 4 * 6 * 8 * 6)
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(1, 5, 8)
    with torch.no_grad():
        counted = count_operations(lambda: layer(x, x, x, need_weights=False))
    assert counted == 2 * 5 * 8 * (4 * 8) + 2 * 2 * (5 * 8 * 5)


def test_calls_take_turns_and_one_out_of_memory_is_left_out():
    order = []

    def fails():
        order.append("b")
        raise MemoryError("too large. Advice follows")

    costs = measure({"a": lambda: order.append("a"), "b": fails}, CPU, warmup=1, repeats=2)
    assert order == ["a", "b", "a", "a"]
    assert len(costs["a"].seconds) == 2 and not costs["a"].error
    assert costs["b"].error == "too large" and not costs["b"].seconds
    order.clear()
    measure({"a": lambda: order.append("a"), "c": lambda: order.append("c")}, CPU, warmup=1, repeats=2)
    assert "".join(order) == "accaac"


def test_time_and_memory_are_those_of_the_call():
    costs = measure({"sleep": lambda: time.sleep(0.02)}, CPU, warmup=1, repeats=2)
    assert all(0.02 <= s < 2 for s in costs["sleep"].seconds)
    for _ in range(2):  # what the first call freed does not hide the second
        assert 39e6 < peak_memory(lambda: np.ones(40_000_000, dtype=np.uint8).sum(), CPU) < 60e6


def test_prompts_are_coco_classes_of_both_kinds_and_begin_again():
    names, is_thing = coco_prompts(150)
    assert len(names) == 150 and len(set(names)) == 133 and names[133] == names[0]
    assert coco_prompts(6) == (names[:6], [True, False] * 3) and is_thing[:6] == [True, False] * 3


def test_the_tool_has_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--help"])
    with pytest.raises(SystemExit) as exited:
        runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")
    assert not exited.value.code and "--against" in capsys.readouterr().out


def test_random_weights_pass_one_query_of_each_prompt(build):
    model = build(weights=False)
    assert isinstance(model, OpenWorldSAM)
    pipeline = Pipeline("random", load_config(TINY), model, encoded_image(None), random=True)
    pipeline.ask(3)
    assert pipeline.whole().queries.scores.tolist() == [1, 0, 0, 0] * 3
