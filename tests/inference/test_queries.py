"""Queries: selecting some of them, and resizing them a bounded number at a time."""

import math

import pytest
import torch
from torch.nn import functional as F

from openworldsam.inference import Queries
from openworldsam.inference import queries as queries_module
from openworldsam.inference.queries import upsampled


def logits_of(num_queries, side=5):
    return torch.randn(num_queries, side, side, generator=torch.Generator().manual_seed(num_queries))


def test_select_takes_the_same_queries_of_all_three_tensors():
    queries = Queries(logits_of(4), torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([7, 8, 9, 7]))

    by_index = queries.select(torch.tensor([3, 1]))
    assert by_index.labels.tolist() == [7, 8]
    assert torch.equal(by_index.scores, torch.tensor([0.4, 0.2]))
    assert torch.equal(by_index.logits, queries.logits[[3, 1]])

    by_mask = queries.select(queries.labels == 7)
    assert torch.equal(by_mask.scores, torch.tensor([0.1, 0.4]))
    assert len(queries.select(queries.scores > 1).logits) == 0


@pytest.mark.parametrize("size", [(11, 7), (3, 2), (1, 1), (5, 5), (1, 40)])
def test_upsampled_is_bilinear_without_aligned_corners(size):
    logits = logits_of(3)
    ((part, resized),) = upsampled(logits, size)
    expected = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    assert (part.start, part.stop) == (0, 3)
    assert torch.equal(resized, expected)


def test_doubling_two_pixels_by_hand():
    ((_, resized),) = upsampled(torch.tensor([[[3.0, -1.0]]]), (1, 4))
    assert resized.tolist() == [[[3.0, 2.0, 0.0, -1.0]]]


@pytest.mark.parametrize(
    ("masks_that_fit", "lengths"), [(0.5, [1] * 7), (1, [1] * 7), (3, [3, 3, 1]), (3.9, [3, 3, 1]), (7, [7]), (99, [7])]
)
def test_chunks_cover_all_queries_in_order_within_the_bound(monkeypatch, masks_that_fit, lengths):
    logits, size = logits_of(7), (6, 4)
    whole = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    monkeypatch.setattr(queries_module, "CHUNK_BYTES", int(masks_that_fit * 4 * 6 * 4))
    chunks = list(upsampled(logits, size))
    assert [len(resized) for _, resized in chunks] == lengths
    assert [query for part, _ in chunks for query in range(part.start, part.stop)] == list(range(7))
    assert torch.equal(torch.cat([resized for _, resized in chunks]), whole)


def test_no_queries_give_no_chunks():
    assert list(upsampled(torch.zeros(0, 5, 5), (3, 3))) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["logits", "predicted_iou"])
def test_an_output_that_is_not_finite_is_an_error(value, where):
    output = {"logits": torch.zeros(3, 4, 4, dtype=torch.bfloat16), "predicted_iou": torch.rand(3).bfloat16()}
    queries = Queries.decoded(**output, labels=torch.arange(3))
    assert torch.equal(queries.predicted_iou, output["predicted_iou"])
    output[where].view(-1)[-1] = value
    with pytest.raises(ValueError, match=r"not finite numbers.*MODEL\.PRECISION"):
        Queries.decoded(**output, labels=torch.arange(3))
