"""Large vocabularies, a chunk of the prompts at a time: equal to all at once, and bounded memory."""

import pytest
import torch
from test_benchmark import cfg  # noqa: F401 (fixture)

from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.summary import scalars
from openworldsam.inference import InferenceOptions, Queries, Question, infer, prompt_chunk

TASKS = ("semantic", "instance", "panoptic", "referring")
PROMPTS = ["cat", "dog", "grass", "sky", "a red cup", "wall", "tree"]


@pytest.fixture
def asked(pictures):
    """A picture and prompts; classes in no order, stuff among them."""
    picture = pictures[0]
    classes = {"class_ids": [4, 0, 6, 2, 1, 5, 3], "is_thing": [True, True, False, False, True, False, True]}
    return {"image": picture, "height": 60, "width": 90, "prompts": PROMPTS, "num_classes": 9, **classes}


def assert_same(one, other):
    assert torch.equal(one["semantic"], other["semantic"]) and one["semantic"].unique().numel() > 1
    a, b = one["instances"], other["instances"]
    assert len(a) and torch.equal(a.pred_masks, b.pred_masks) and torch.equal(a.pred_classes, b.pred_classes)
    assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    torch.testing.assert_close(a.scores, b.scores)
    assert torch.equal(one["panoptic_seg"][0], other["panoptic_seg"][0]) and one["panoptic_seg"][1]
    for s, t in zip(one["panoptic_seg"][1], other["panoptic_seg"][1], strict=True):
        assert s == {**t, "score": pytest.approx(t["score"])}


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["INSTANCE_NMS", "box"],
        ["TOP_K", 5],
        ["SEMANTIC_WEIGHT", "softmax"],
        ["TWO_STAGE", True, "TWO_STAGE_KEEP", "all"],
    ],
)
def test_streamed_equals_all_at_once(build, asked, opts, chunk):
    keys = [f"MODEL.INFERENCE.{key}" if isinstance(key, str) and key.isupper() else key for key in opts]
    model = build("MODEL.INFERENCE.SCORE_THRESHOLD", 0.45, *keys)
    whole = model([asked], tasks=TASKS[:3])[0]
    assert_same(model([asked], tasks=TASKS[:3], prompt_chunk=chunk)[0], whole)


def test_streamed_expressions_equal_all_at_once(build, asked):
    expressions = {key: asked[key] for key in ("image", "height", "width", "prompts")}
    model = build()
    (masks, scores), (other, others) = (
        model([expressions], tasks=("referring",), prompt_chunk=chunk)[0]["referring"] for chunk in (2, 0)
    )
    assert torch.equal(masks, other)
    torch.testing.assert_close(scores, others)


def test_images_of_a_batch_are_chunked_one_by_one(build, asked):
    model = build("MODEL.INFERENCE.SCORE_THRESHOLD", 0.45)
    few = {**asked, "prompts": PROMPTS[:2], "class_ids": [4, 0], "is_thing": [True, True]}
    batch = [asked, few, asked]
    for result, inputs in zip(model(batch, tasks=TASKS[:3], prompt_chunk=3), batch, strict=True):
        assert_same(result, model([inputs], tasks=TASKS[:3])[0])


def test_no_more_queries_are_decoded_than_a_chunk_has(build, asked):
    model, decoded = build(), []
    model.mask_decoder.register_forward_hook(lambda _, __, output: decoded.append(len(output[1])))
    model([asked], tasks=TASKS[:3], prompt_chunk=2)
    queries = model.adapter.num_queries
    assert decoded == [2 * queries] * 3 + [queries]


def test_the_protocol_global_gives_the_same_metrics(cfg, build):  # noqa: F811
    cfg.merge_from_list(["DATASETS.TEST", ["shapes_val"], "TEST.PROTOCOL", "global", "TEST.PROMPT_CHUNK", 0])
    model = build("MODEL.INFERENCE.SCORE_THRESHOLD", 0.45)
    whole = evaluate(cfg, model)
    cfg.TEST.PROMPT_CHUNK = 5
    assert evaluate(cfg, model) == whole


@pytest.mark.parametrize(
    ("opts", "chunk"),
    [
        ([], 32),
        (["TEST.PROMPT_CHUNK", 0], 0),
        (["MODEL.ADAPTER.INTERACTION", "image"], 0),
        (["MODEL.INFERENCE.TWO_STAGE", True], 0),
        (["MODEL.INFERENCE.TWO_STAGE", True, "MODEL.INFERENCE.TWO_STAGE_KEEP", "all"], 32),
    ],
)
def test_prompts_that_depend_on_each_other_stay_together(tiny_cfg, opts, chunk):
    tiny_cfg.merge_from_list(opts)
    assert prompt_chunk(tiny_cfg) == chunk


@pytest.mark.parametrize("sentences", ["first", "all"])
def test_expressions_are_asked_jointly_or_each_alone(cfg, build, sentences):  # noqa: F811
    cfg.DATASETS.TEST = ["shapes_refer_val"]
    found, decoded, queries = {}, {}, cfg.MODEL.ADAPTER.NUM_TIE_BREAKERS
    for interaction in ("prompt", "image"):
        model = build("MODEL.ADAPTER.INTERACTION", interaction)
        for way in (sentences, f"{sentences}_alone"):
            cfg.merge_from_list(["TEST.SENTENCES", way, "MODEL.ADAPTER.INTERACTION", interaction])
            counts = decoded[interaction, way] = []
            hook = model.mask_decoder.register_forward_hook(
                lambda _, __, output, counts=counts: counts.append(len(output[1]) // queries)
            )
            found[interaction, way] = scalars(evaluate(cfg, model))["shapes_refer_val"]
            hook.remove()
    alone = f"{sentences}_alone"
    assert found["prompt", alone] == pytest.approx(found["prompt", sentences], rel=1e-4)
    assert found["image", alone] != pytest.approx(found["image", sentences], rel=1e-4)
    for interaction in ("prompt", "image"):
        assert max(decoded[interaction, sentences]) > 1 and set(decoded[interaction, alone]) == {1}
        assert sum(decoded[interaction, alone]) == sum(decoded[interaction, sentences])


def test_classes_may_come_in_any_order():
    queries = Queries(torch.zeros(3, 4, 4), torch.ones(3), torch.tensor([5, 1, 3]))  # equal scores: the smallest wins
    parts = [queries.select(torch.tensor([part])) for part in range(3)]
    result = infer(parts, ("semantic",), Question.of((8, 8), 6), InferenceOptions())["semantic"]
    assert result.map.unique().tolist() == [1]
