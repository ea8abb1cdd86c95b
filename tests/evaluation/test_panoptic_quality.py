"""Panoptic quality equals panopticapi; hand-calculated cases; bad input."""

import json

import numpy as np
import pytest
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from openworldsam.evaluation.metrics import PanopticQuality

CAT, DOG, SKY = 17, 18, 187
IS_THING = {CAT: True, DOG: True, SKY: False}


def scores(*images, is_thing=IS_THING):
    quality = PanopticQuality(is_thing)
    for image in images:
        quality.update(*image)
    return quality.compute()


def panopticapi_scores(folder, images, is_thing):
    """panopticapi's metrics of the same images: overall 0 to 100, per class 0 to 1."""
    rows = []
    for index, (predicted_map, predicted, truth_map, truth, areas) in enumerate(images):
        name = f"{index}.png"
        for kind, ids in (("predicted", predicted_map), ("truth", truth_map)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(ids.copy())).save(folder / kind / name)
        keys = ("id", "category_id", "iscrowd")
        infos = [dict(zip(keys, segment, strict=False)) for segment in truth]
        for info in infos:
            info["area"] = areas.get(info["id"], int((truth_map == info["id"]).sum()))
        rows.append(
            (
                {"image_id": index, "file_name": name, "segments_info": infos},
                {"file_name": name, "segments_info": [dict(zip(keys, s, strict=False)) for s in predicted]},
            )
        )
    stat = pq_compute_single_core(0, rows, folder / "truth", folder / "predicted", is_thing)
    assert isinstance(stat, PQStat)
    categories = {category: {"isthing": int(thing)} for category, thing in is_thing.items()}
    overall = {}
    for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
        average, per_class = stat.pq_average(categories, isthing=isthing)
        overall |= {name.upper() + suffix: 100 * average[name] for name in ("pq", "sq", "rq")}
        if isthing is None:
            every = per_class
    return overall, every


def assert_equal_to_panopticapi(folder, images, is_thing):
    overall, per_class = scores(*images, is_thing=is_thing)
    expected, expected_per_class = panopticapi_scores(folder, images, is_thing)
    assert overall == pytest.approx(expected, rel=1e-13)
    for category, metrics in per_class.items():
        found = {name.lower(): (value or 0) / 100 for name, value in metrics.items()}
        assert found == pytest.approx(expected_per_class[category], rel=1e-13)


def disturbed(generator, ids, segments, categories):
    """A prediction made from the ground truth: shifted, with segments dropped, merged, relabelled or grown."""
    ids = np.roll(ids, generator.integers(-4, 5, 2), axis=(0, 1))
    category = {segment: label for segment, label, _ in segments}
    for segment in list(category):
        what = generator.integers(8)
        if what == 0:
            ids[ids == segment] = 0
        elif what == 1:
            ids[ids == segment] = generator.choice(list(category))
        elif what == 2:
            category[segment] = int(generator.choice(categories))
        elif what == 3:
            y, x = generator.integers(0, ids.shape[0] - 5), generator.integers(0, ids.shape[1] - 5)
            ids[y : y + 20, x : x + 20] = segment
    return ids, [(segment, label) for segment, label in category.items() if (ids == segment).any()]


def spoilt(generator, ids, segments):
    """A truth with more void and crowds than there were."""
    ids, kept = ids.copy(), []
    for segment, label, crowd in segments:
        what = generator.integers(8)
        if what == 0:
            ids[ids == segment] = 0
        elif (ids == segment).any():
            kept.append((segment, label, 1 if what == 1 else crowd))
    return ids, kept


def other_areas(generator, ids, segments):
    """What a json may say: from a third to three times the pixels, of half of the segments."""
    drawn = {i: int((ids == i).sum() * 3 ** generator.uniform(-1, 1)) for i, *_ in segments if generator.random() < 0.5}
    return {i: area for i, area in drawn.items() if area}


@pytest.mark.parametrize("areas", [other_areas, lambda *_: {}], ids=["other areas", "areas of the map"])
def test_equals_panopticapi_on_real_images(shared, tmp_path, areas):
    folder = shared / "data/coco_panoptic_sample"
    content = json.loads((folder / "panoptic.json").read_text())
    is_thing = {category["id"]: bool(category["isthing"]) for category in content["categories"]}
    present = [s["category_id"] for a in content["annotations"] for s in a["segments_info"]]
    images = []
    for annotation in content["annotations"]:
        ids = rgb2id(np.asarray(Image.open(folder / "panoptic" / annotation["file_name"]).convert("RGB")))[::3, ::3]
        segments = [(s["id"], s["category_id"], s["iscrowd"]) for s in annotation["segments_info"]]
        for seed in range(8):
            generator = np.random.default_rng(seed)
            truth = spoilt(generator, ids, segments)
            images.append((*disturbed(generator, *truth, present), *truth, areas(generator, *truth)))
    assert_equal_to_panopticapi(tmp_path, images, is_thing)


@pytest.mark.parametrize("areas", [other_areas, lambda *_: {}], ids=["other areas", "areas of the map"])
def test_equals_panopticapi_on_crowded_small_maps(tmp_path, areas):
    """Maps of 12 pixels: IoUs hit the thresholds exactly, and a class has several crowd regions."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(150):
        ids = generator.integers(0, 5, (2, 3, 4)).astype(np.int32)
        ids[1][generator.random((3, 4)) < 0.5] = ids[0][0, 0]
        labels = generator.choice(list(IS_THING), (2, 5)).tolist()
        predicted, truth = ([(i, labels[k][i]) for i in np.unique(ids[k]).tolist() if i] for k in (0, 1))
        segments = [(i, label, int(generator.integers(3) == 0)) for i, label in truth]
        images.append((ids[0], predicted, ids[1], segments, areas(generator, ids[1], segments)))
    assert_equal_to_panopticapi(tmp_path, images, IS_THING)


def test_by_hand():
    truth = np.array([[1, 1, 1, 1, 2, 2, 2, 2]])
    predicted = np.array([[5, 5, 5, 6, 6, 6, 6, 6]])
    # cat: IoU 3/4; sky: IoU 4/5
    result = scores((predicted, [(5, CAT), (6, SKY)], truth, [(1, CAT, 0), (2, SKY, 0)]))
    assert result.overall["PQ_th"] == result.per_class[CAT]["PQ"] == pytest.approx(75)
    assert result.overall["PQ_st"] == pytest.approx(80)
    assert result.overall["PQ"] == result.overall["SQ"] == pytest.approx(77.5)
    assert result.overall["RQ"] == 100
    assert result.per_class[DOG] == {"PQ": None, "SQ": None, "RQ": None}


def test_the_union_counts_the_area_of_the_json():
    """Sky was 8 pixels before the cat was drawn over 4 of them: IoU 4/8 is no match, 4/7 is one."""
    truth, segments = np.array([[1, 1, 1, 1, 2, 2, 2, 2]]), [(1, CAT, 0), (2, SKY, 0)]
    perfect = [(1, CAT), (2, SKY)]
    for area, expected in ((8, 0), (7, 400 / 7), (0, 100)):
        result = scores((truth, perfect, truth, segments, {2: area}))
        assert (result.overall["PQ_th"], result.overall["PQ_st"]) == (100, pytest.approx(expected))


def test_an_iou_of_one_half_is_no_match():
    truth, predicted = np.array([[1, 1]]), np.array([[1, 0]])
    result = scores((predicted, [(1, CAT)], truth, [(1, CAT, 0)]))
    assert result.per_class[CAT] == {"PQ": 0, "SQ": 0, "RQ": 0}


@pytest.mark.parametrize(("iscrowd", "label"), [(1, CAT), (0, None)], ids=["crowd", "void"])
def test_predictions_on_crowd_regions_and_void_are_no_errors(iscrowd, label):
    truth = np.array([[3, 3, 1, 1]]) if label else np.array([[0, 0, 1, 1]])
    segments = [(1, SKY, 0), *([(3, label, iscrowd)] if label else [])]
    predicted = np.array([[9, 9, 4, 4]])
    result = scores((predicted, [(9, CAT), (4, SKY)], truth, segments))
    assert result.overall["PQ"] == 100
    assert result.per_class[CAT]["PQ"] is None


@pytest.mark.parametrize("nothing", [0, -1])
def test_empty_prediction_and_empty_truth(nothing):
    empty, full = np.full((2, 2), nothing, dtype=np.int32), np.ones((2, 2), dtype=np.int32)
    assert scores((empty, [], full, [(1, CAT, 0)])).overall["PQ"] == 0
    # all void: nothing to measure
    assert set(scores((full, [(1, CAT)], empty, [])).overall.values()) == {None}
    assert set(scores().overall.values()) == {None}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((np.ones((2, 3), int), [(1, CAT)], np.ones((3, 2), int), [(1, CAT, 0)]), r"\(2, 3\), the ground truth \(3, 2"),
        ((np.ones((2, 2), int), [], np.zeros((2, 2), int), []), r"ids \[1\], which no predicted segment has"),
        ((np.zeros((2, 2), int), [(7, CAT)], np.zeros((2, 2), int), []), r"segments \[7\] have no pixel"),
        ((np.ones((2, 2), int), [(1, 99)], np.zeros((2, 2), int), []), "predicted segment 1 has the unknown"),
        ((np.zeros((2, 2), int), [], np.ones((2, 2), int), [(1, 99, 0)]), "ground-truth segment 1 has the unknown"),
        ((np.ones((2, 2), int), [(1, CAT), (1, DOG)], np.zeros((2, 2), int), []), "unique and at least 1, got 1"),
        ((np.zeros((2, 2), int), [(0, CAT)], np.zeros((2, 2), int), []), "unique and at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_leaves_the_counts(image, message):
    quality = PanopticQuality(IS_THING)
    with pytest.raises(ValueError, match=message):
        quality.update(*image)
    assert set(quality.compute().overall.values()) == {None}
