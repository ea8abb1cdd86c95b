import numpy as np
import pytest

from openworldsam.video.trackers import DetectionTracker, associate, iou_between, nearness

SIZE = (40, 100)


def box(x, y=10, side=20):
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


@pytest.fixture
def tracker():
    """Knows object 1 of prompt a at x = 10, and object 2 of prompt b at x = 60."""
    tracker = DetectionTracker()
    tracker.begin(1, 0, 0, None, box(10))
    tracker.begin(2, 1, 0, None, box(60))
    return tracker


@pytest.fixture
def locate(tracker, predicted):
    """Locate the objects in a frame with the given masks, by default all of prompt a and with falling scores."""

    def find(*masks, prompts=None, scores=None):
        stacked = np.stack(masks) if masks else np.zeros((0, *SIZE), bool)
        scores = np.linspace(0.9, 0.8, len(masks)) if scores is None else scores
        return tracker.locate(1, None, predicted(stacked, scores, prompts, prompts=("a", "b")), SIZE)

    return find


def test_iou_of_pairs():
    iou = iou_between(np.stack([box(0), box(10)]), np.stack([box(0), box(10), box(50)]))
    np.testing.assert_allclose(iou, [[1, 1 / 3, 0], [1 / 3, 1, 0]])


def test_nearness_counts_diagonals():
    boxes = np.array([[0, 0, 30, 40], [30, 40, 60, 80], [0, 0, 6, 8]], float)
    np.testing.assert_allclose(nearness(boxes[:1], boxes), [[1, 0, 0.6]])


def test_the_assignment_is_the_best_and_not_the_greedy_one():
    assert associate(np.array([[0.6, 0.5], [0.55, -1]])) == [(0, 1), (1, 0)]
    assert associate(np.array([[0.6, 0.5, 0.1], [0, 0, 0]])) == [(0, 0)]
    assert associate(np.zeros((0, 3))) == associate(np.zeros((3, 0))) == []


def test_objects_that_move_are_followed(locate):
    located = locate(box(52), box(18), prompts=[1, 0], scores=[0.8, 0.9])
    assert np.array_equal(located.masks[1], box(18)) and np.array_equal(located.masks[2], box(52))
    assert located.scores == {1: pytest.approx(0.9), 2: pytest.approx(0.8)}
    assert np.array_equal(located.id_map, box(18) + 2 * box(52))


def test_where_objects_overlap_the_better_score_is_on_top(locate):
    for _ in range(2):  # in two steps, as each must overlap the one before
        located = locate(box(20), box(50), prompts=[0, 1], scores=[0.7, 0.8])
    located = locate(box(30), box(40), prompts=[0, 1], scores=[0.7, 0.8])
    assert located.id_map[15, 45] == 2 and located.id_map[15, 35] == 1


def test_a_lost_object_comes_back_near_by_and_not_from_afar(locate):
    assert locate().masks == {}
    assert locate(box(75)).masks == {}, "an object of prompt a, far from where that was lost"
    assert locate(box(35)).masks.keys() == {1}


def test_the_object_in_front_is_not_the_lost_one(tracker, locate):
    """Prompt a finds what prompt b found too, near the place where the object of a was lost."""
    tracker.last[1] = box(45)
    located = locate(box(60), box(61), prompts=[1, 0])
    assert located.masks.keys() == {2}


def test_another_prompt_is_another_object(locate):
    assert locate(box(10), prompts=[1]).masks == {}
