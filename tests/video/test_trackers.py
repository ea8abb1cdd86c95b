import numpy as np
import pytest

from openworldsam import Prediction
from openworldsam.video.trackers import DetectionTracker, associate, iou_between, nearness

SIZE = (40, 100)


def box(x, y=10, side=20):
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def found(*masks, prompts=None, scores=None):
    """What text found, mask by mask; by default with one prompt and falling scores."""
    count = len(masks)
    edges = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in map(np.nonzero, masks)]
    return Prediction(
        task="instance",
        prompts=("a", "b"),
        masks=np.stack(masks) if masks else np.zeros((0, *SIZE), bool),
        scores=np.array(scores or np.linspace(0.9, 0.8, count), np.float32),
        boxes=np.array(edges, np.float32).reshape(-1, 4),
        prompt_index=np.array(prompts or [0] * count),
        is_thing=np.ones(count, bool),
        label_map=np.zeros(SIZE, np.int32),
        threshold=0.7,
        best_score=0.9,
        logits=None,
    )


def locate(tracker, *masks, **options):
    return tracker.locate(1, None, found(*masks, **options), SIZE)


@pytest.fixture
def tracker():
    """Knows object 1 of text a at x = 10, and object 2 of text b at x = 60."""
    tracker = DetectionTracker()
    tracker.begin(1, 0, 0, None, box(10))
    tracker.begin(2, 1, 0, None, box(60))
    return tracker


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


def test_objects_that_move_are_followed(tracker):
    located = locate(tracker, box(52), box(18), prompts=[1, 0], scores=[0.8, 0.9])
    assert np.array_equal(located.masks[1], box(18)) and np.array_equal(located.masks[2], box(52))
    assert located.scores == {1: pytest.approx(0.9), 2: pytest.approx(0.8)}
    assert np.array_equal(located.id_map, box(18) + 2 * box(52))


def test_where_objects_overlap_the_better_score_is_on_top(tracker):
    for _ in range(2):  # in two steps, as each must overlap the one before
        located = locate(tracker, box(20), box(50), prompts=[0, 1], scores=[0.7, 0.8])
    located = locate(tracker, box(30), box(40), prompts=[0, 1], scores=[0.7, 0.8])
    assert located.id_map[15, 45] == 2 and located.id_map[15, 35] == 1


def test_a_lost_object_comes_back_near_by_and_not_from_afar(tracker):
    assert locate(tracker).masks == {}
    assert locate(tracker, box(75)).masks == {}, "an object of text a, far from where that was lost"
    assert locate(tracker, box(35)).masks.keys() == {1}


def test_the_object_in_front_is_not_the_lost_one(tracker):
    """Text a finds what text b has found, too, near to where a's own was lost."""
    tracker.last[1] = box(45)
    located = locate(tracker, box(60), box(61), prompts=[1, 0])
    assert located.masks.keys() == {2}


def test_another_text_is_another_object(tracker):
    assert locate(tracker, box(10), prompts=[1]).masks == {}
