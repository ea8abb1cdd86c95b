"""Which score counts: every task with every rule equals the same task with those scores as predicted IoU."""

import pytest
import torch
from one_task import instances, panoptic, question, strips

from openworldsam.inference import InferenceOptions, Queries, infer, refine
from openworldsam.inference.queries import join

RULES = ("iou", "match", "product")
TASKS = ("semantic", "instance", "panoptic", "referring")
IS_THING = {0: True, 1: True, 2: False, 3: False}
SIZE = (13, 9)


def random_queries(num_queries=40, seed=0):
    """Blobs with two scores that order them differently."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_queries, 4, 4, generator=generator) - 3
    logits[-8:] = logits[:8] + 0.1  # near duplicates, of the same labels
    iou, match = torch.rand(2, num_queries, generator=generator)
    return Queries(logits, iou, torch.arange(num_queries) % 4, match)


def as_predicted_iou(queries, rule):
    """The same queries, their score by the rule in the place of the predicted IoU."""
    return queries._replace(predicted_iou=queries.by_rule(rule).scores, match=None)


def everything(chunks, options, generalized=False):
    """Results of all tasks: what they found, without its evidence, and the best scores."""
    queries = join(chunks)
    asked = question(queries, SIZE, is_thing=IS_THING)._replace(generalized=generalized)
    results = infer(chunks, TASKS, asked, options)
    found = [results[task].found() for task in TASKS]
    return [part for each in found for part in each[:3]] + [results["semantic"].map, results["best_scores"]], found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"instance_nms": "box", "semantic_weight": "softmax", "nms_threshold": 0.2},
        {"top_k": 6, "overlap_threshold": 0.2},
    ],
    ids=["default", "released", "top k"],
)
@pytest.mark.parametrize("generalized", [False, True])
def test_a_rule_is_its_scores_in_every_task(rule, options, generalized):
    queries, options = random_queries(), {"score_threshold": 0.3, **options}
    ours, found = everything([queries], InferenceOptions(score=rule, **options), generalized)
    plain, _ = everything([as_predicted_iou(queries, rule)], InferenceOptions(**options), generalized)
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    pairs = {"iou": lambda e: e[:, 0], "match": lambda e: e[:, 1], "product": lambda e: e[:, 0] * e[:, 1]}
    for each in found:  # both scores of the query that a mask is of
        assert len(each.scores) and torch.equal(pairs[rule](each.evidence), each.scores)
    others = [everything([queries], InferenceOptions(score=other, **options))[0] for other in RULES if other != rule]
    assert all(not torch.equal(other[1], ours[1]) for other in others)  # of semantic; the rules do differ


@pytest.mark.parametrize("rule", RULES)
def test_chunks_of_prompts_change_nothing(rule):
    queries, options = random_queries(), InferenceOptions(score=rule, score_threshold=0.3)
    by_label = queries.select(queries.labels.argsort(stable=True))
    whole, found = everything([by_label], options)
    chunked, found_in_chunks = everything(by_label.split(10), options)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=0)
    for one, other in zip(found, found_in_chunks, strict=True):
        assert torch.equal(one.evidence, other.evidence)


def rated(iou, match, labels, *logits):
    return strips(iou, labels, *logits)._replace(match=torch.tensor(match))


def test_duplicates_and_thresholds_by_hand():
    queries = rated([0.9, 0.6, 0.8], [0.3, 0.8, 0.2], [0, 0, 1], [9, 9, -9], [9, 9, -9], [-9, -9, 9])

    def labels_and_scores(rule, threshold):
        options = InferenceOptions(score=rule, score_threshold=threshold)
        found = instances(queries, (1, 3), options)
        result = panoptic(queries, (1, 3), {0: True, 1: True}, options)
        pairs = list(zip(found.labels.tolist(), found.scores.tolist(), strict=True))
        assert sorted((segment.label, segment.score) for segment in result.segments) == sorted(pairs)
        return [(label, pytest.approx(score)) for label, score in pairs]

    assert labels_and_scores("iou", 0.5) == [(0, 0.9), (1, 0.8)]  # the name of label 1 fits nothing there
    assert labels_and_scores("match", 0.5) == [(0, 0.8)]
    assert labels_and_scores("product", 0.15) == [(0, 0.48), (1, 0.16)]


@pytest.mark.parametrize("rule", RULES)
def test_two_stages_keep_the_match_score(rule):
    queries = rated([0.9, 0.6, 0.8], [0.3, 0.8, 0.2], [4, 5, 6], [1, 1], [1, 1], [1, -1])
    kept = {"iou": [4, 5, 6], "match": [5], "product": []}[rule]
    new = torch.tensor([0.5, 0.25, 0.75])
    result = refine(queries, InferenceOptions(score=rule, score_threshold=0.5), lambda x: (x + 9, new[: len(x)]))
    if not kept:  # none is confident, so nothing is refined
        assert torch.equal(result.logits, queries.logits) and torch.equal(result.scores, queries.by_rule(rule).scores)
        return
    assert result.labels.tolist() == kept and result.rule == rule
    assert torch.equal(result.match, queries.match[[label - 4 for label in kept]])
    assert torch.equal(result.predicted_iou, new[: len(kept)]) and (result.logits > 7).all()
    every = InferenceOptions(score=rule, score_threshold=0.5, two_stage_keep="all")
    assert torch.equal(refine(queries, every, lambda x: (x, new)).evidence, torch.stack([new, queries.match], dim=1))


def test_parts_and_joins_keep_score_and_rule():
    queries = random_queries(12).by_rule("product")
    for same in (join(queries.split(4)), queries.select(torch.arange(12)), queries.select(torch.ones(12).bool())):
        assert same.rule == "product"
        assert all(torch.equal(a, b) for a, b in zip(same[:4], queries[:4], strict=True))
    assert [part.match.tolist() for part in queries.split(5)] == [queries.match[i : i + 5].tolist() for i in (0, 5, 10)]


@pytest.mark.parametrize("rule", ["match", "product"])
def test_without_a_head_its_rules_are_refused(rule):
    queries = strips([0.9], [0], [1, 1])
    assert queries.evidence[:, 1].isnan().all()
    with pytest.raises(ValueError, match=rf"SCORE {rule} needs a score head \(MODEL\.SCORE_HEAD\.HIDDEN\), or set iou"):
        instances(queries, (1, 2), InferenceOptions(score=rule))


def test_a_match_score_that_is_not_finite_is_an_error():
    output = torch.zeros(3, 2, 2), torch.rand(3), torch.arange(3)
    found = Queries.decoded(*output, match=torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(found.match, torch.tensor([0.1, 0.2, 0.3])) and torch.equal(found.predicted_iou, output[1])
    none = Queries.decoded(torch.zeros(0, 2, 2), torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert none.match.shape == none.predicted_iou.shape == (0,)
    with pytest.raises(ValueError, match=r"not finite numbers"):
        Queries.decoded(*output, match=torch.tensor([0.1, torch.nan, 0.3]))


@pytest.mark.parametrize(
    "options", [{"score": "IoU"}, {"score": None}, {"score": ["match"]}, {"score_threshold": 1.5, "score": "match"}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"MODEL\.INFERENCE\.SCORE"):
        InferenceOptions(**options)
