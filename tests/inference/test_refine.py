import torch

from openworldsam.inference import InferenceOptions, Queries, refine

ROWS = Queries(torch.arange(4.0)[:, None, None].expand(4, 2, 2), torch.tensor([0.7, 0.69, 0.9, 0.1]), torch.arange(4))


def second_pass(logits):
    return logits + 10, torch.full((len(logits),), 0.5)


def test_confident_queries_are_refined_and_the_others_vanish():
    result = refine(ROWS, InferenceOptions(score_threshold=0.7), second_pass)
    assert result.labels.tolist() == [0, 2]
    assert result.logits[:, 0, 0].tolist() == [10, 12] and result.scores.tolist() == [0.5, 0.5]


def test_without_a_confident_query_nothing_is_refined():
    assert refine(ROWS, InferenceOptions(score_threshold=0.95), second_pass) == ROWS


def test_all_queries_can_be_kept():
    result = refine(ROWS, InferenceOptions(score_threshold=0.95, two_stage_keep="all"), second_pass)
    assert result.labels.tolist() == [0, 1, 2, 3] and (result.scores == 0.5).all()
