"""Semantic metrics equal Detectron2's evaluator; hand-calculated cases; bad input."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from openworldsam.evaluation.metrics import SemanticScores

CLASSES = 7


def scores(*images, num_classes=3, ignore=255):
    accumulator = SemanticScores(num_classes, ignore)
    for predicted, truth in images:
        accumulator.update(np.array(predicted), np.array(truth))
    return accumulator.compute()


@pytest.fixture
def detectron2_scores(tmp_path):
    """A function that returns Detectron2's metrics of (predicted, truth) pairs."""
    name = "semantic_scores_test"

    def evaluate(images):
        records = [
            {"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / f"{i}.png")} for i in range(len(images))
        ]
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(stuff_classes=[f"class{i}" for i in range(CLASSES)], ignore_label=255)
        # its own reader fails with NumPy 2
        evaluator = SemSegEvaluator(
            name, distributed=False, sem_seg_loading_fn=lambda path, dtype: np.asarray(Image.open(path), dtype)
        )
        evaluator.reset()
        for record, (predicted, truth) in zip(records, images, strict=True):
            Image.fromarray(truth.astype(np.uint8)).save(record["sem_seg_file_name"])
            one_hot = torch.nn.functional.one_hot(torch.from_numpy(predicted), CLASSES).permute(2, 0, 1)
            evaluator.process([record], [{"sem_seg": one_hot}])
        return evaluator.evaluate()["sem_seg"]

    yield evaluate
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("seed", range(3))
def test_equals_detectron2(seed, detectron2_scores):
    """Class 6 is never true, class 5 never predicted; a fifth of the pixels is ignored."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(4):
        truth = generator.integers(0, 6, (20, 30))
        predicted = np.where(generator.random(truth.shape) < 0.6, truth, 6)
        predicted[predicted == 5] = 0
        truth[generator.random(truth.shape) < 0.2] = 255
        images.append((predicted, truth))
    overall, per_class = scores(*images, num_classes=CLASSES)
    expected = detectron2_scores(images)
    for name in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert overall[name] == pytest.approx(expected[name], rel=1e-13)
    for index in range(CLASSES):
        for kind in ("IoU", "ACC"):
            found = per_class[index][kind]
            value = expected[f"{kind}-class{index}"]
            assert (found is None and np.isnan(value)) or found == pytest.approx(value, rel=1e-13)
    # X-Decoder's denominator includes class 6, which is predicted but never true
    assert overall["mIoU_gt_or_pred"] == pytest.approx(overall["mIoU"] * 6 / 7)


def test_by_hand():
    overall, per_class = scores(([[0, 0, 1, 1]], [[0, 1, 1, 255]]))
    assert [per_class[c]["IoU"] for c in range(3)] == [50, 50, None]
    assert [per_class[c]["ACC"] for c in range(3)] == [100, 50, None]
    assert overall["mIoU"] == overall["mIoU_gt_or_pred"] == 50
    assert overall["pACC"] == pytest.approx(200 / 3)
    assert overall["mACC"] == 75
    assert overall["fwIoU"] == pytest.approx(50)


@pytest.mark.parametrize("nothing", [-1, 3, 255, 65535])
def test_no_class_is_a_false_negative_and_no_false_positive(nothing):
    overall, per_class = scores(([[0, nothing, 1, 1]], [[0, 0, 1, 1]]))
    assert (per_class[0]["IoU"], per_class[1]["IoU"]) == (50, 100)
    assert overall["pACC"] == 75
    assert overall["mIoU_gt_or_pred"] == 75


def test_an_ignored_class():
    """SUN RGB-D: label 0 is background, may be predicted, and is ignored as ground truth."""
    overall, per_class = scores(([[0, 1, 2, 0]], [[0, 1, 2, 2]]), ignore=0)
    assert per_class[0]["IoU"] is None
    assert overall["mIoU"] == 75
    assert overall["mIoU_gt_or_pred"] == 50


def test_nothing_to_measure_gives_none():
    assert set(scores().overall.values()) == {None}
    overall, per_class = scores(([[0, 1]], [[255, 255]]))
    assert set(overall.values()) == {None}
    assert {value for metrics in per_class.values() for value in metrics.values()} == {None}


def test_small_integer_types_do_not_overflow():
    labels = np.array([[200, 254]], dtype=np.uint8)
    accumulator = SemanticScores(255)
    accumulator.update(labels, labels)
    assert accumulator.compute().overall["mIoU"] == 100
    assert labels.tolist() == [[200, 254]]


def test_bad_input_is_refused_and_leaves_the_counts():
    accumulator = SemanticScores(3)
    with pytest.raises(ValueError, match=r"labels \[3, 200\]; classes are 0..2, 255 is ignored"):
        accumulator.update(np.zeros((1, 3), int), np.array([[200, 3, 255]]))
    with pytest.raises(ValueError, match=r"the prediction is \(1, 3\), the ground truth \(3, 1\)"):
        accumulator.update(np.zeros((1, 3), int), np.zeros((3, 1), int))
    with pytest.raises(ValueError, match="None is ignored"):
        SemanticScores(3, ignore=None).update(np.array([[0]]), np.array([[-1]]))
    assert not accumulator.confusion.any()
