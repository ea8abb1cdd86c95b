"""Boxes that go with a text: what they add and take away; bad input is named."""

import numpy as np
import pytest
import torch

from openworldsam import OpenWorldSAMPredictor
from openworldsam.inference import TASKS, Queries
from openworldsam.predictor.boxes import BoxPrompts


@pytest.fixture
def asked(predictor, photograph):
    """A predictor with a picture of 451 x 300 pixels."""
    predictor.set_image(photograph)
    return predictor


def strips(*columns):
    """Queries of whole columns of 8 x 8 logits; query i has label i."""
    logits = torch.full((len(columns), 8, 8), -1.0)
    for mask, (start, stop) in zip(logits, columns, strict=True):
        mask[:, start:stop] = 1
    return Queries(logits, torch.ones(len(columns)), torch.arange(len(columns)))


@pytest.mark.parametrize(
    ("boxes", "labels", "left"),
    [
        ([[0, 0, 20, 40]], ["within"], [0, 1]),  # columns 0 to 3: of 1 it holds half, of 2 a third
        ([[0, 0, 20, 40]], ["not"], [2, 3, 4]),
        ([[0, 0, 20, 40]], [0], [2, 3, 4]),
        ([[0, 0, 20, 40], [30, 0, 40, 40]], ["within", "within"], [0, 1, 3]),  # one of them will do
        ([[0, 0, 20, 40], [30, 0, 40, 40]], ["not", "not"], [2, 4]),
        ([[0, 0, 20, 40], [0, 0, 10, 40]], ["within", "not"], [1]),
        ([[0, 0, 20, 19]], ["within"], [0]),  # touches 4 rows of 8: half of 0, a quarter of 1
        ([], [], [0, 1, 2, 3, 4]),
    ],
)
def test_masks_of_which_half_is_in_a_box(boxes, labels, left):
    """The image has 40 x 40 pixels, the logits a fifth of that."""
    queries = strips((0, 2), (2, 6), (2, 8), (6, 8), (3, 3))  # the last one is empty and lies in no box
    found = BoxPrompts.checked(boxes, labels, (40, 40), 5).apply(None, queries)
    assert found.labels.tolist() == left
    assert torch.equal(found.logits, queries.logits[left])


@pytest.mark.parametrize("task", TASKS)
def test_not_and_within_are_complements_of_all_that_a_text_finds(asked, task):
    """A box around all, in which every mask lies."""
    everything = asked.predict(["cat", "sky"], task)
    whole = [0, 0, 451, 300]
    within = asked.predict(["cat", "sky"], task, boxes=whole, box_labels=["within"])
    assert np.array_equal(within.masks, everything.masks) and np.array_equal(within.scores, everything.scores)
    without = asked.predict(["cat", "sky"], task, boxes=[whole], box_labels=["not"])
    assert len(without) == 0 and without.best_score == 0


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_a_shown_thing_is_found_first(tiny_cfg, photograph, head_opts, task, head):
    asked = OpenWorldSAMPredictor(tiny_cfg, opts=head_opts if head else [])
    asked.set_image(photograph)
    box = [100, 60, 300, 250]
    thing = asked.click(box=box)
    found = asked.predict("cat", task, boxes=[box], box_labels=[1], score_threshold=0.9)
    assert found.best_score == 1 and found.prompts == ("cat",)
    if task in ("instance", "referring"):
        assert np.array_equal(found.masks[0], thing.masks[0]) and found.scores[0] == 1
        assert np.array_equal(found.logits[0], thing.logits[0]) and np.isnan(found.match[0]) != head
    by_default = asked.predict("cat", task, boxes=box, score_threshold=0.9)
    assert np.array_equal(by_default.masks, found.masks)


def test_a_box_leaves_the_session_as_it_was(asked):
    before = asked.predict("cat")
    asked.predict("cat", boxes=[100, 60, 300, 250])
    asked.predict("cat", boxes=[100, 60, 300, 250], box_labels=["not"])
    after = asked.predict("cat")
    assert np.array_equal(before.masks, after.masks) and np.array_equal(before.scores, after.scores)


def test_a_shown_thing_replaces_its_duplicates(asked):
    """A text that finds the very mask of a box, with a lower score."""
    box = [100, 60, 300, 250]
    thing = asked.click(box=box)
    found = Queries(torch.from_numpy(thing.logits), torch.tensor([0.8]), torch.zeros(1, dtype=torch.long))
    asked.session.queries = lambda *question: found
    assert asked.predict("cat", score_threshold=0.7).scores.tolist() == [np.float32(0.8)]
    assert asked.predict("cat", boxes=box, score_threshold=0.7).scores.tolist() == [1]
    both = asked.predict("cat", boxes=[box, [0, 0, 90, 90]], score_threshold=0.7, nms_threshold=1.0)
    assert both.scores.tolist() == [1, 1, np.float32(0.8)] and np.array_equal(both.masks[0], thing.masks[0])


@pytest.mark.parametrize(
    ("prompts", "boxes", "labels", "message"),
    [
        ("cat", [[0, 0, 9]], None, r"box must be x0, y0, x1, y1; got the shape \(3,\)"),
        ("cat", [[0, 0, 9, 9], [0, 0, 452, 9]], None, "within the image of 451 x 300 pixels, got 0, 0, 452, 9"),
        ("cat", [[5, 5, 5, 9]], None, "got 5, 5, 5, 9"),
        ("cat", "here", None, "boxes must be a list of x0, y0, x1, y1; got 'here'"),
        ("cat", [[0, 0, 9, 9]], [1, 0], r"one label for each box: got \[1, 0\] for 1 boxes"),
        ("cat", [[0, 0, 9, 9]], 1, "one label for each box: got 1 for 1 boxes"),
        ("cat", None, [1], r"one label for each box: got \[1\] for 0 boxes"),
        ("cat", [[0, 0, 9, 9]], [2], r'a box label is "this" \(or 1\), "not" \(or 0\) or "within", got 2'),
        ("cat", [[0, 0, 9, 9]], ["near"], "got 'near'"),
        ("cat", [[0, 0, 9, 9]], [None], "got None"),
        (["cat", "dog"], [[0, 0, 9, 9]], ["this"], 'a "this" box goes with one prompt, got 2: ask them one by one'),
        ([], [[0, 0, 9, 9]], [1], "got 0"),
    ],
)
def test_bad_boxes_are_named(asked, prompts, boxes, labels, message):
    with pytest.raises(ValueError, match=message):
        asked.predict(prompts, boxes=boxes, box_labels=labels)


def test_labels_may_be_an_array(asked):
    boxes = np.array([[0, 0, 200, 300], [100, 60, 300, 250]])
    for labels in (np.array([0, 1]), torch.tensor([0, 1]), ("not", "this")):
        assert asked.predict("cat", boxes=torch.from_numpy(boxes), box_labels=labels).best_score == 1
