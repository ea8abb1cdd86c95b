from functools import partial
from pathlib import Path

import pytest
import torch

from openworldsam.config import load_config
from openworldsam.modeling import Adapter, OpenWorldSAM
from openworldsam.modeling.prompt_encoders import build_prompt_encoder
from openworldsam.utils.device import DTYPES

ROOT = Path(__file__).parents[2]
PRESETS = ("paper", "released", "improved")


def inputs(pictures, prompts):
    return [{"image": image, "prompts": texts} for image, texts in zip(pictures, prompts, strict=True)]


def with_targets(batch, counts, seed=0):
    """Add random ground truth: counts of masks for each prompt of each image."""
    generator = torch.Generator().manual_seed(seed)
    for x, per_prompt in zip(batch, counts, strict=True):
        size = x["image"].shape[1:]
        x["targets"] = [torch.rand(n, *size, generator=generator) > 0.5 for n in per_prompt]
    return batch


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "opts",
    [[], ["MODEL.ADAPTER.INTERACTION", "image", "MODEL.ADAPTER.FUSION", "broadcast"]],
    ids=["paper", "released"],
)
def test_a_batch_gives_each_image_its_own_result(build, pictures, opts):
    model = build(
        "MODEL.INFERENCE.SCORE_THRESHOLD",
        0.5,
        "MODEL.INFERENCE.TASKS",
        ["semantic", "instance", "panoptic", "referring"],
        *opts,
    )
    batch = inputs(pictures, [["cat", "grass"], ["dog", "sky", "a red car"]])
    together = model(batch)
    for x, joint in zip(batch, together, strict=True):
        (alone,) = model([x])
        assert joint["semantic"].shape == x["image"].shape[1:]
        torch.testing.assert_close(joint["referring"][1], alone["referring"][1])
        torch.testing.assert_close(joint["instances"].scores, alone["instances"].scores)
        assert (joint["semantic"] == alone["semantic"]).float().mean() > 0.999
        assert (joint["panoptic_seg"][0] == alone["panoptic_seg"][0]).float().mean() > 0.999
        segments = [[(s["id"], s["category_id"]) for s in r["panoptic_seg"][1]] for r in (joint, alone)]
        assert segments[0] == segments[1]


@torch.no_grad()
def decoded(model, image, prompts):
    embeddings = model.encode_prompts(
        model.prompt_inputs([image]), prompts, torch.zeros(len(prompts), dtype=torch.long)
    )
    return model.queries(model.encode_images([image]), embeddings)


@pytest.mark.parametrize("fusion", ["replace", "add", "broadcast"])
def test_prompts_are_independent_under_interaction_prompt(build, pictures, fusion):
    model = build("MODEL.ADAPTER.FUSION", fusion)
    alone = decoded(model, pictures[0], ["cat"])
    together = decoded(model, pictures[0], ["cat", "a very different thing"])
    torch.testing.assert_close(together.logits[:4], alone.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.scores[:4], alone.scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", ["replace", "add", "broadcast"])
def test_prompts_of_an_image_interact_under_interaction_image(build, pictures, fusion):
    model = build("MODEL.ADAPTER.FUSION", fusion, "MODEL.ADAPTER.INTERACTION", "image")
    alone = decoded(model, pictures[0], ["cat"])
    together = decoded(model, pictures[0], ["cat", "a very different thing"])
    assert (together.logits[:4] - alone.logits).abs().max() > 1e-3


def test_chunks_change_nothing(build, pictures):
    prompts = ["cat", "dog", "sky"]
    whole = decoded(build(), pictures[0], prompts)
    chunked = decoded(build("MODEL.MASK_DECODER.CHUNK", 4, "MODEL.PROMPT_ENCODER.CHUNK", 1), pictures[0], prompts)
    torch.testing.assert_close(chunked.logits, whole.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(chunked.scores, whole.scores, rtol=1e-5, atol=1e-6)


def test_the_order_of_prompts_does_not_matter(build, pictures):
    model = build("MODEL.ADAPTER.FUSION", "broadcast", "MODEL.ADAPTER.INTERACTION", "image")
    forward = decoded(model, pictures[0], ["cat", "sky"])
    backward = decoded(model, pictures[0], ["sky", "cat"])
    torch.testing.assert_close(forward.logits[:4], backward.logits[4:], rtol=1e-4, atol=1e-5)


def test_an_image_without_prompts_gives_an_empty_result(build, pictures):
    model = build("MODEL.INFERENCE.TASKS", ["semantic", "instance", "panoptic", "referring"])
    for batch in (
        inputs(pictures, [[], []]),
        inputs(pictures, [["cat"], []]),
        inputs(pictures, [[], ["cat"]]),
    ):
        for x, result in zip(batch, model(batch), strict=True):
            assert result["semantic"].shape == x["image"].shape[1:]
            if not x["prompts"]:
                assert (result["semantic"] == -1).all()
                assert len(result["instances"]) == 0
                assert result["panoptic_seg"][1] == []
                assert len(result["referring"][0]) == 0


def test_classes_things_and_sizes_reach_the_results(build, pictures):
    model = build("MODEL.INFERENCE.SCORE_THRESHOLD", 0.0)
    x = {
        "image": pictures[0], "prompts": ["grass", "cat"], "class_ids": [90, 7], "is_thing": [False, True],
        "num_classes": 133, "height": 31, "width": 47,
    }  # fmt: skip
    (result,) = model([x])
    assert result["semantic"].shape == (31, 47)
    assert set(result["semantic"].unique().tolist()) <= {90, 7}
    assert set(result["instances"].pred_classes.tolist()) == {7}
    assert result["instances"].image_size == (31, 47)
    for segment in result["panoptic_seg"][1]:
        assert segment["isthing"] == (segment["category_id"] == 7)


def test_only_the_adapter_is_trained(build, pictures):
    model = build()
    model.train()
    frozen = [model.image_encoder, model.prompt_encoder, model.mask_decoder]
    assert not any(m.training for module in frozen for m in module.modules())
    assert model.adapter.training and model.adapter.soft_prompt.layers[0].dropout.training
    losses = model(with_targets(inputs(pictures, [["cat", "sky"], ["dog"]]), [[2, 1], [3]]))
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        learns = name.startswith("adapter.")
        assert (parameter.grad is not None) == learns, name
        assert not learns or parameter.grad.abs().sum() > 0, name


def naive_loss(model, batch):
    """Every row decoded with gradient, one prompt at a time."""
    images = [x["image"] for x in batch]
    prompts = [p for x in batch for p in x["prompts"]]
    index = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(x["prompts"]) for x in batch]))
    targets = [t for x in batch for t in x["targets"]]
    features = model.encode_images(images)
    embeddings = model.encode_prompts(model.prompt_inputs(images), prompts, index)
    tokens = model.decoder_tokens(features, embeddings, index)
    logits, _ = model.mask_decoder(features, tokens, single_mask=True)
    logits = logits.unflatten(0, (len(prompts), -1))
    total = 0
    for p, target in enumerate(targets):
        matches = model.criterion.match(logits[p : p + 1], [target])
        loss = model.criterion(logits[p, matches.query], [target], matches)["loss_mask"]
        total = total + loss / sum(len(t) > 0 for t in targets)
    return total


@pytest.mark.parametrize(("fusion", "queries"), [("replace", 4), ("broadcast", 4), ("replace", 1)])
def test_decoding_only_matched_rows_with_gradient_is_exact(build, pictures, fusion, queries):
    model = build("MODEL.ADAPTER.FUSION", fusion, "MODEL.ADAPTER.DROPOUT", 0.0)
    model.adapter.tie_breakers = torch.nn.Parameter(model.adapter.tie_breakers[:queries].detach().clone())
    model.train()
    batch = with_targets(inputs(pictures, [["cat", "sky", "tree"], ["dog"]]), [[2, 0, 6], [1]])
    gradients = []
    for loss in (model(batch)["loss_mask"], naive_loss(model, batch)):
        model.zero_grad()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.adapter.named_parameters()})
    torch.testing.assert_close(model(batch)["loss_mask"], naive_loss(model, batch), rtol=1e-5, atol=1e-6)
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-3, atol=1e-6)


def test_a_batch_without_ground_truth_gives_zero_gradients(build, pictures):
    model = build()
    model.train()
    loss = model(with_targets(inputs(pictures, [["cat"], ["sky"]]), [[0], [0]]))["loss_mask"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.adapter.parameters())


def test_training_never_uses_the_multimask_fallback(build, pictures):
    batch = with_targets(inputs(pictures, [["cat"], ["sky"]]), [[1], [2]])
    losses = []
    for fallback in (True, False):
        model = build("MODEL.MASK_DECODER.DYNAMIC_MULTIMASK", fallback, "MODEL.ADAPTER.DROPOUT", 0.0)
        model.train()
        losses.append(model(batch)["loss_mask"])
    assert losses[0] == losses[1]


def test_training_without_prompts_is_an_error(build, pictures):
    model = build()
    model.train()
    with pytest.raises(ValueError, match="without any prompt"):
        model(with_targets(inputs(pictures, [[], []]), [[], []]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.rand(3, 8, 8)}, "uint8"),
        ({"image": torch.zeros(8, 8, 3, dtype=torch.uint8)}, "uint8"),
        ({"prompts": "cat"}, "list of texts"),
        ({"class_ids": [1]}, "2 prompts and 1 class_ids"),
        ({"is_thing": [True] * 3}, "2 prompts and 3 is_thing"),
    ],
)
def test_inputs_that_would_give_wrong_results_are_errors(build, pictures, change, message):
    (x,) = inputs(pictures[:1], [["cat", "dog"]])
    with pytest.raises(ValueError, match=message):
        build()([{**x, **change}])


def test_targets_must_match_the_prompts(build, pictures):
    model = build()
    model.train()
    batch = inputs(pictures, [["cat", "dog"], ["sky"]])
    with pytest.raises(ValueError, match="2 prompts and none targets"):
        model(batch)
    with pytest.raises(ValueError, match="image 0 has 2 prompts and 1 targets"):
        model(with_targets(batch, [[1], [1, 2]]))  # as many in all, but shifted
    with pytest.raises(ValueError, match="empty batch"):
        model([])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_surrounding_autocast_changes_no_fp32_loss(build, pictures, dtype):
    model = build("MODEL.ADAPTER.DROPOUT", 0.0)
    model.train()
    batch = with_targets(inputs(pictures, [["cat"], ["sky"]]), [[1], [2]])
    expected = model(batch)["loss_mask"]
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(model(batch)["loss_mask"], expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_half_precision_stays_near_fp32(build, pictures, precision):
    losses = []
    for p in ("fp32", precision):
        model = build("MODEL.ADAPTER.DROPOUT", 0.0, "MODEL.PRECISION", p)
        model.train()
        losses.append(model(with_targets(inputs(pictures, [["cat"], ["sky"]]), [[1], [2]]))["loss_mask"])
        losses[-1].backward()
        assert all(q.grad.isfinite().all() for q in model.adapter.parameters())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0)


def test_bf16_stays_near_fp32(build, pictures):
    exact = decoded(build(), pictures[0], ["cat", "sky"])
    rounded = decoded(build("MODEL.PRECISION", "bf16"), pictures[0], ["cat", "sky"])
    assert rounded.logits.dtype == torch.float32
    assert not torch.equal(rounded.logits, exact.logits)
    assert ((rounded.logits - exact.logits).norm() / exact.logits.norm()) < 0.1


def test_a_prompt_without_a_row_after_two_stages_keeps_its_place_among_the_expressions(build, pictures):
    prompts = ["cat", "sky", "a very long expression"]
    batch, referring = inputs(pictures[:1], [prompts]), ("referring",)
    best = build()(batch, tasks=referring)[0]["referring"][1]
    threshold = float(best.sort().values[:2].mean())  # all but the worst have a confident row
    opts = ["MODEL.INFERENCE.TWO_STAGE", True, "MODEL.INFERENCE.SCORE_THRESHOLD", threshold]
    masks, scores = build(*opts)(batch, tasks=referring)[0]["referring"]
    assert len(masks) == len(scores) == 3
    assert (scores > 0).tolist() == (best > threshold).tolist() and not masks[best.argmin()].any()


def test_the_released_code_refines_every_query_of_an_expression(build, pictures):
    """Its threshold for them is 0; for other tasks, asked at the same time or not, it is SCORE_THRESHOLD."""
    batch = inputs(pictures[:1], [["cat", "sky", "a very long expression"]])
    best = build()(batch, tasks=["referring"])[0]["referring"][1]
    opts = ["MODEL.INFERENCE.TWO_STAGE", True, "MODEL.INFERENCE.SCORE_THRESHOLD", float(best.sort().values[:2].mean())]

    def answer(*tasks, keep="confident"):
        return build(*opts, "MODEL.INFERENCE.TWO_STAGE_KEEP", keep)(batch, tasks=tasks)[0]

    everything = answer("referring", keep="all")["referring"]
    assert (everything[1] > 0).all() and not (answer("referring")["referring"][1] > 0).all()
    semantic = answer("semantic")["semantic"]
    assert not torch.equal(answer("semantic", keep="all")["semantic"], semantic)
    released = answer("referring", "semantic", keep="all_expressions")
    for masks, scores in (released["referring"], answer("referring", keep="all_expressions")["referring"]):
        assert torch.equal(masks, everything[0]) and torch.equal(scores, everything[1])
    for found in (released, answer("semantic", keep="all_expressions")):
        assert torch.equal(found["semantic"], semantic)
    rules = {p: load_config(ROOT / f"configs/presets/{p}.yaml").MODEL.INFERENCE.TWO_STAGE_KEEP for p in PRESETS}
    assert rules == {"paper": "confident", "released": "all_expressions", "improved": "all"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.PRECISION", "fp8"),
        ("MODEL.ADAPTER.FUSION", "concat"),
        ("MODEL.ADAPTER.INTERACTION", "batch"),
        ("MODEL.CRITERION.DIVISOR", "pixels"),
        ("MODEL.INFERENCE.INSTANCE_NMS", "soft"),
        ("MODEL.INFERENCE.SEMANTIC_WEIGHT", "none"),
        ("MODEL.INFERENCE.TWO_STAGE_KEEP", "some"),
        ("MODEL.INFERENCE.SCORE_THRESHOLD", 70.0),
        ("MODEL.INFERENCE.TASKS", ["depth"]),
        ("MODEL.MASK_DECODER.CHUNK", 0),
        ("MODEL.PROMPT_ENCODER.CHUNK", 0),
        ("MODEL.ADAPTER.NUM_TIE_BREAKERS", -1),
        ("MODEL.ADAPTER.NUM_HEADS", 7),
        ("MODEL.SAM2.WIDTH", 24),
        ("MODEL.SAM2.STAGES", [1, 2]),
        ("MODEL.INFERENCE.TOP_K", -3),
        ("MODEL.SAM2.IMAGE_SIZE", 100),
        ("MODEL.PROMPT_ENCODER.MAX_TOKENS", 5000),
        ("MODEL.PIXEL_MEAN", [123.0]),
        ("MODEL.PIXEL_STD", [58.0, 57.0, 0.0]),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(build, key, value):
    with pytest.raises(ValueError, match=key):
        build(key, value, weights=False)


# the ablations of Tables 4 and 5: trained parameters
ABLATIONS = {
    "e1": 1_312_000,
    "e2": 1_317_120,
    "e3": 1_317_120,
    "e4": 674_019_584,
    "e5": 4_477_440,
    "e6": 677_179_904,
    "beit3_text": 4_477_440,
    "beit3_text_refcocog": 4_477_440,
    "clip_text": 3_952_896,
    "clip_late_fusion": 5_919_744,
}


def test_every_ablation_is_counted():
    assert {path.stem for path in (ROOT / "configs/ablations").iterdir()} == ABLATIONS.keys()


@pytest.mark.parametrize("name", ABLATIONS)
def test_trained_parameters_of_the_ablations(name):
    path = ROOT / f"configs/ablations/{name}.yaml"
    cfg = load_config(path)
    with torch.device("meta"):
        adapter = Adapter(cfg, embed_dim=cfg.MODEL.PROMPT_ENCODER.EMBED_DIM)
        encoder = trainable(build_prompt_encoder(cfg)) if cfg.MODEL.PROMPT_ENCODER.TRAINABLE else 0
    assert trainable(adapter) + encoder == ABLATIONS[name]
    assert f"{ABLATIONS[name]:,} trained parameters" in path.read_text() or name in ("e2", "beit3_text_refcocog")
    assert f"output/ablations/{name}" == cfg.OUTPUT_DIR
    assert name != "e5" or len(list(adapter.parameters())) == 59


def test_without_prompt_encoder_a_prompt_says_nothing(build, pictures):
    model = build("MODEL.PROMPT_ENCODER.NAME", "ZeroPromptEncoder", weights=False)
    cat, sky = (model(inputs(pictures[:1], [[text]]), tasks=["referring"])[0]["referring"] for text in ("cat", "sky"))
    assert torch.equal(cat[0], sky[0]) and torch.equal(cat[1], sky[1])


def test_a_trainable_prompt_encoder_is_trained(build, pictures):
    model = build("MODEL.PROMPT_ENCODER.TRAINABLE", True)
    model.train()
    assert model.prompt_encoder.training
    expected = sum(p.numel() for p in model.adapter.parameters()) + sum(
        p.numel() for p in model.prompt_encoder.parameters()
    )
    assert trainable(model) == expected
    model(with_targets(inputs(pictures, [["cat"], ["sky"]]), [[1], [2]]))["loss_mask"].backward()
    assert model.prompt_encoder.beit3.encoder.layers[0].ffn.B.fc1.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_full_size_counts():
    opts = ["MODEL.PROMPT_ENCODER.TRAINABLE", "True"]
    model = OpenWorldSAM(load_config(ROOT / "configs/presets/paper.yaml", opts))
    assert trainable(model) == 672_702_464 + 4_477_440  # E6
    assert trainable(model) - trainable(model.adapter.soft_prompt) == 672_702_464 + 1_317_120  # E4
    assert sum(p.numel() for p in model.prompt_encoder.parameters()) == 672_702_464
    assert len(model.prompt_encoder.beit3.state_dict()) == 971
    assert sum(p.numel() for p in model.image_encoder.backbone.parameters()) == 212_703_280
    model.prompt_encoder.requires_grad_(False)
    assert trainable(model) == 4_477_440
    assert sum(1 for p in model.parameters() if p.requires_grad) == 59


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@torch.no_grad()
def test_frozen_matrices_kept_in_half_precision_change_no_bit(build, precision):
    kept = build("MODEL.PRECISION", precision)
    rounded_each_time = build()
    rounded_each_time.precision = precision
    matrices = [kept.image_encoder.conv_s0.weight, kept.mask_decoder.decoder.iou_prediction_head.layers[0].weight]
    matrices.append(kept.prompt_encoder.beit3.vision_embed.proj.weight)
    assert {matrix.dtype for matrix in matrices} == {DTYPES[precision]}
    assert {p.dtype for p in kept.adapter.parameters()} == {torch.float32}
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = [{"image": image, "prompts": ["zebra", "grass"], "is_thing": [True, False]}]
    found, expected = kept(batch)[0], rounded_each_time(batch)[0]
    assert torch.equal(found["instances"].scores, expected["instances"].scores)
    assert torch.equal(found["instances"].pred_masks, expected["instances"].pred_masks)
    assert torch.equal(found["semantic"], expected["semantic"])


@torch.no_grad()
def test_compiled_equals_eager_and_is_not_compiled_anew_for_each_number_of_prompts(build, monkeypatch):
    # traced, but run by PyTorch: a C++ compiler would take minutes
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager, compiled = build(), build("MODEL.COMPILE", "True")
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    graphs = []
    for prompts in (["a zebra", "grass"], ["a zebra on the left", "grass", "sky"], ["zebra"] * 5, ["sky above"] * 9):
        index = torch.zeros(len(prompts), dtype=torch.long)
        queries = []
        for model in (eager, compiled):
            embeddings = model.encode_prompts(model.prompt_inputs([image]), prompts, index)
            queries.append(model.queries(model.encode_images([image]), embeddings))
        torch.testing.assert_close(queries[1].logits, queries[0].logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(queries[1].scores, queries[0].scores, rtol=1e-4, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] >= 3 and graphs[2] == graphs[3] <= 8
