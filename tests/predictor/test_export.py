import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from openworldsam.predictor.export import coco_annotations, to_detectron2, to_fiftyone, to_supervision


@pytest.fixture
def prediction(predicted):
    """Two masks in an image of 4 x 8 pixels, the better one of the second prompt."""
    masks = np.zeros((2, 4, 8))
    masks[0, 1:3, 2:6] = 1
    masks[0, 1, 2] = 0
    masks[1, 3, 7] = 1
    return predicted(masks, [0.5, 0.75], [1, 0], prompts=("cat", "dog"))


@pytest.fixture
def matched(predicted):
    """Masks with predicted IoU 0.75, one of a click, which has no match score."""
    return predicted(np.ones((2, 4, 8)), [0.75, 0.75], match=[0.25, np.nan])


@pytest.fixture
def nothing(predicted):
    return predicted(np.zeros((0, 4, 8)))


def test_coco(prediction):
    first, second = coco_annotations(prediction)
    assert first["bbox"] == [2, 1, 4, 2] and first["area"] == 7 and first["category_id"] == 2
    assert second["bbox"] == [7, 3, 1, 1] and second["area"] == 1 and second["score"] == 0.75
    assert second["predicted_iou"] == 0.75 and "match" not in second


def test_coco_has_both_scores_and_what_is_not_found(predicted):
    masks = np.ones((1, 4, 8))
    made = predicted(masks, [0.75], [1], match=[0.5], prompts=("cat", "dog"), threshold=0.25, best_scores=[0.125, 0.5])
    content = made.to_coco("a.png", {"preset": "paper"})
    assert content["info"] == {"task": "instance", "score": {"rule": "match", "threshold": 0.25}, "preset": "paper"}
    (image,), (annotation,) = content["images"], content["annotations"]
    assert image["not_found"] == {"cat": 0.125}
    assert [annotation[name] for name in ("score", "predicted_iou", "match")] == [0.5, 0.75, 0.5]


def test_the_file_that_was_read_is_named_by_default(predicted):
    made = predicted(np.ones((1, 4, 8)), path="folder/a.png")
    assert made.to_coco()["images"][0]["file_name"] == "a.png"
    assert predicted(np.ones((1, 4, 8))).to_coco()["images"][0]["file_name"] == ""


def test_a_mask_without_a_match_score_has_no_such_key(matched):
    first, second = coco_annotations(matched)
    assert first["match"] == 0.25 and "match" not in second


def test_detectron2(prediction, matched, nothing):
    assert to_detectron2(matched).predicted_iou.tolist() == [0.75, 0.75]
    assert to_detectron2(matched).match[0] == 0.25 and to_detectron2(matched).match[1].isnan()
    instances = to_detectron2(prediction)
    assert instances.image_size == (4, 8)
    assert np.array_equal(instances.pred_masks.numpy(), prediction.masks)
    assert instances.pred_boxes.tensor.tolist() == [[2, 1, 6, 3], [7, 3, 8, 4]]
    assert instances.pred_classes.tolist() == [1, 0] and instances.scores.tolist() == [0.5, 0.75]
    assert len(to_detectron2(nothing)) == 0


def test_supervision(prediction, matched, nothing):
    sv = pytest.importorskip("supervision")
    detections = to_supervision(prediction)
    assert isinstance(detections, sv.Detections) and len(detections) == 2
    assert np.array_equal(detections.mask, prediction.masks)
    assert detections.xyxy.tolist() == [[2, 1, 6, 3], [7, 3, 8, 4]]
    assert detections["class_name"].tolist() == ["dog", "cat"]
    np.testing.assert_array_equal(to_supervision(matched)["match"], matched.match)
    best = detections[detections.confidence > 0.6]
    assert best["predicted_iou"].tolist() == [0.75]
    assert best.class_id.tolist() == [0] and best.area.tolist() == [1]
    picture = sv.MaskAnnotator().annotate(np.zeros((4, 8, 3), dtype=np.uint8), detections)
    assert np.array_equal(picture.any(axis=-1), prediction.masks.any(axis=0))
    assert len(to_supervision(nothing)) == 0


@pytest.fixture
def stand_in(monkeypatch):
    """Stand-in for fiftyone, which is large, with the names and arguments of its documentation."""
    fo = ModuleType("fiftyone")
    fo.Detection = fo.Detections = SimpleNamespace
    fo.Sample = type("Sample", (dict,), {"__init__": lambda self, filepath: self.update(filepath=filepath)})
    monkeypatch.setitem(sys.modules, "fiftyone", fo)


def test_fiftyone(prediction, matched, stand_in):
    sample = to_fiftyone(prediction, "a.jpg", "ours")
    assert sample["filepath"] == "a.jpg"
    first, second = sample["ours"].detections
    assert (first.label, first.confidence) == ("dog", 0.5)
    assert first.bounding_box == pytest.approx([0.25, 0.25, 0.5, 0.5], abs=1e-6)
    assert first.mask.tolist() == [[False, True, True, True], [True] * 4]
    assert second.bounding_box == pytest.approx([0.875, 0.75, 0.125, 0.25], abs=1e-6)
    assert second.label == "cat" and second.mask.shape == (1, 1)
    assert second.predicted_iou == 0.75 and not hasattr(second, "match")
    assert to_fiftyone(matched, "a.jpg")["predictions"].detections[0].match == 0.25


def test_fiftyone_names_the_file_that_was_read(predicted, nothing, stand_in):
    assert predicted(np.ones((1, 4, 8)), path="b.jpg").to_fiftyone()["filepath"] == "b.jpg"
    with pytest.raises(ValueError, match="not read from a file: give its path"):
        nothing.to_fiftyone()


def test_fiftyone_boxes_end_at_their_pixel(predicted, stand_in):
    """45 / 192 + 82 / 192 is less than 127 / 192, which FiftyOne would round down to 126."""
    masks = np.zeros((1, 192, 192))
    masks[0, 45:127, 45:127] = 1
    x, y, width, height = to_fiftyone(predicted(masks), "a.jpg")["predictions"].detections[0].bounding_box
    assert [int(192 * end) for end in (x, y, x + width, y + height)] == [45, 45, 127, 127]
    assert int(192 * (45 / 192 + 82 / 192)) == 126


@pytest.mark.parametrize("size", [(192, 192), (427, 640), (480, 1920)])
def test_fiftyone_keeps_every_pixel(predicted, size):
    """FiftyOne draws masks in boxes of any place and size unchanged into the image."""
    pytest.importorskip("fiftyone")
    generator, count = np.random.default_rng(0), 40
    masks = np.zeros((count, *size), dtype=bool)
    for mask in masks:
        (y0, y1), (x0, x1) = (np.sort(generator.choice(length + 1, 2, replace=False)) for length in size)
        mask[y0:y1, x0:x1] = generator.random((y1 - y0, x1 - x0)) < 0.5
    prediction = predicted(masks, np.linspace(0.5, 1, count), np.arange(count) % 2, prompts=("cat", "dog"))
    sample = to_fiftyone(prediction, "a.jpg")
    assert sample.filepath.endswith("a.jpg") and len(prediction.masks) == count
    for n, detection in enumerate(sample["predictions"].detections):
        drawn = detection.to_segmentation(frame_size=size[::-1]).mask
        assert np.array_equal(drawn > 0, prediction.masks[n])
        assert detection.label == prediction.prompts[prediction.prompt_index[n]]
        assert detection.confidence == prediction.scores[n]


@pytest.mark.parametrize(
    ("package", "convert"), [("supervision", to_supervision), ("fiftyone", lambda p: to_fiftyone(p, "a.jpg"))]
)
def test_a_missing_package_is_named(prediction, monkeypatch, package, convert):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{package} is not installed: pip install {package}"):
        convert(prediction)
