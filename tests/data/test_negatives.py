"""Absent prompts: they are absent, fixed for an image, half of them alike; and chosen by weight."""

import json
from collections import Counter

import numpy as np
import pytest

from openworldsam.config import load_config
from openworldsam.data.datasets import register_datasets
from openworldsam.data.datasets.coco import CATEGORIES, GROUPS
from openworldsam.data.loader import training_dataset
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.negatives import CANDIDATES, Negatives, choose
from openworldsam.data.records import as_record

NAMES = ("red circle", "blue circle", "red square", "dog", "cat", "horse", "sky", "grass")
GROUPS_OF = ("", "", "", "animal", "animal", "animal", "", "")
IS_THING = (True,) * 6 + (False,) * 2


def image(number, *classes, **entries):
    """A record with segments of classes; a crowd where the class is given as (class, 1)."""
    segments = [
        {"id": i, "category_id": c, "iscrowd": crowd}
        for i, (c, crowd) in enumerate((c if isinstance(c, tuple) else (c, 0) for c in classes), start=1)
    ]
    about = {"file_name": f"{number}.png", "image_id": number, "height": 4, "width": 4}
    return as_record({**about, "pan_seg_file_name": "", "segments_info": segments, **entries})


def referring(number, *objects):
    """A record whose objects have the given sentences."""
    square = [[0, 0, 2, 0, 2, 2, 0, 2]]
    annotations = [
        {"id": i, "sentences": list(texts), "segmentation": square, "bbox": [0, 0, 2, 2], "category_id": 0}
        for i, texts in enumerate(objects)
    ]
    about = {"file_name": f"{number}.png", "image_id": number, "height": 4, "width": 4}
    return as_record({**about, "annotations": annotations})


@pytest.mark.parametrize("num", [1, 2, 9])
def test_candidates_are_absent_distinct_and_fixed_for_an_image(num):
    negatives = Negatives(num, NAMES, GROUPS_OF)
    drawn = []
    for number in range(40):
        record = image(number, 0, (3, 1), 7)
        found = negatives.classes(record)
        assert len(found) == len(set(found)) == min(CANDIDATES * num, 5) and not {0, 3, 7} & set(found)
        assert Negatives(num, NAMES, GROUPS_OF).classes(record) == found
        drawn.append(tuple(found))
    assert len(set(drawn)) > 1 and set().union(*drawn) == {1, 2, 4, 5, 6}  # images differ, and every class has its turn


def test_another_folder_of_the_dataset_has_the_same_candidates():
    here, there, other = (
        Negatives(1, NAMES, GROUPS_OF).classes(image(1, 0, file_name=f"{file}/1.png"))
        for file in ("/data/coco/train2017", "elsewhere/train2017", "/data/coco/val2017")
    )
    assert here == there != other


def test_half_of_them_share_a_word_or_group_with_what_is_there():
    for number in range(20):
        found = Negatives(2, NAMES, GROUPS_OF).classes(image(number, 0))  # "red circle": alike are 1 and 2
        assert set(found[:2]) == {1, 2} and len(found) == 4 and not {1, 2} & set(found[2:])
        found = Negatives(2, NAMES, GROUPS_OF).classes(image(number, 4))  # "cat": alike are 3 and 5
        assert set(found[:2]) == {3, 5}
        found = Negatives(2, NAMES, GROUPS_OF).classes(image(number, 7))  # nothing is like "grass"
        assert len(found) == 4 and 7 not in found


def test_classes_that_nobody_looked_for_are_not_called_absent():
    about = {"file_name": "a.png", "image_id": 1, "height": 4, "width": 4}
    mask = {"id": 1, "category_id": 0, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
    record = as_record({**about, "instances": [mask], "absent": [2, 5]})
    assert sorted(Negatives(4, NAMES, GROUPS_OF).classes(record)) == [2, 5]


def test_where_everything_is_there_nothing_is_absent():
    assert Negatives(3, NAMES, GROUPS_OF).classes(image(0, *range(8))) == []
    assert Negatives(3, ("cat",)).classes(image(0, 0)) == []
    assert Negatives(3, ("cat", "dog", "cat")).classes(image(0, 0)) == [1]  # the third is there by its name
    record = referring(0, ["the cat"])
    assert Negatives(3, records=[record]).sentences(record) == []


def test_sentences_with_another_colour_and_of_other_images():
    own = referring(1, ["the Red circle", "a large thing"], ["the grey square left of the red circle"])
    others = [
        referring(2, ["a wooden table"], ["the red chair"]),  # the second shares a word with the image's own
        referring(3, ["his dog", "the circle"]),
        referring(4, ["on the left"]),  # tells nothing
    ]
    found = Negatives(4, records=[own, *others]).sentences(own)
    assert found == Negatives(4, records=[own, *others]).sentences(own)
    foreign = {"a wooden table", "his dog"}
    assert foreign < set(found) and len(found) == len(set(found)) == 4
    for text in set(found) - foreign:
        form, words = ("the {} circle", 1) if "square" not in text else ("the {} square left of the {} circle", 2)
        colour = text.split()[1]
        assert text == form.format(*[colour] * words) and colour not in ("red", "gray", "grey", "Red")


def test_a_sentence_that_mentions_every_colour_has_no_swapped_one():
    record = referring(0, ["red orange yellow green blue purple pink brown black white grey"])
    assert Negatives(2, records=[record, referring(1, ["a dog"])]).sentences(record) == ["a dog"]


def test_the_mapper_adds_them_last_with_a_draw_each_and_lists_them_all(tmp_path, monkeypatch):
    record = image(3, 0, 4, 6)
    pixels, ids = np.zeros((4, 4, 3), np.uint8), np.array([[1, 2, 3, 0]] * 4, np.int32)
    monkeypatch.setattr(type(record), "read_image", lambda self: pixels)
    monkeypatch.setattr(type(record), "read_panoptic", lambda self: (ids, self.segments()))
    negatives = Negatives(2, NAMES, GROUPS_OF)
    mapper = DatasetMapper(class_names=NAMES, is_thing=IS_THING, max_prompts=2, negatives=negatives)
    absent = negatives.classes(record)
    for seed in range(5):
        mapped = mapper(record, np.random.default_rng(seed))
        plain = DatasetMapper(class_names=NAMES, is_thing=IS_THING, max_prompts=2)(record, np.random.default_rng(seed))
        assert mapped["prompts"] == plain["prompts"] + [NAMES[c] for c in absent]
        assert mapped["class_ids"] == plain["class_ids"] + absent
        assert mapped["is_thing"][2:] == [IS_THING[c] for c in absent]
        assert [tuple(target.shape) for target in mapped["targets"]] == [(1, 4, 4)] * 2 + [(0, 4, 4)] * 4
        assert len(mapped["negative_draws"]) == 4 and plain["negative_draws"] == []
        assert set(mapped["prompts"]) <= set(mapper.texts(record))
    assert mapper.texts(record) == [NAMES[c] for c in (0, 4, 6, *absent)]
    assert mapper.texts(image(3)) == []  # nothing to learn, so nothing to keep for it


def test_chances_are_in_proportion_to_weights():
    generator, counts, trials = np.random.default_rng(0), Counter(), 20_000
    for _ in range(trials):
        counts.update(choose(generator.random(3).tolist(), [0.1, 0.3, 0.6], 1))
    assert [counts[i] / trials for i in range(3)] == pytest.approx([0.1, 0.3, 0.6], abs=0.015)
    assert choose([0.2, 0.9, 0.5], [1.0] * 3, 2) == [1, 2] and choose([0.2, 0.9], [1.0] * 2, 5) == [0, 1]
    assert choose([0.2, 0.9], [1.0, 0.05], 1) == [0]  # 0.9 ** 20 is 0.12
    assert choose([], [], 3) == []


def test_the_groups_of_coco_are_its_supercategories(shared):
    content = json.loads((shared / "data/coco_panoptic_sample/panoptic.json").read_text())
    assert len(CATEGORIES) == 133
    assert {c.id: c.group for c in CATEGORIES} == {c["id"]: c["supercategory"] for c in content["categories"]}
    assert len({id_ for ids in GROUPS.values() for id_ in ids}) == sum(map(len, GROUPS.values()))  # one group each


@pytest.mark.parametrize("name", ["shapes_train", "shapes_refer_train"])
def test_shapes(name):
    opts = ["INPUT.NEGATIVES", 4, "DATASETS.TRAIN", [name], "DATASETS.TRAIN_IMAGES", 12]
    cfg = load_config("configs/shapes/openworldsam.yaml", opts)
    register_datasets(cfg)
    dataset = training_dataset(cfg)
    for index in range(12):
        record, mapped = dataset.records[index], dataset[index]
        own = set(DatasetMapper(cfg, class_names=dataset.mapper.class_names).texts(record))
        absent = dataset.mapper.texts(record)[len(own) :]
        assert absent and not own & set(absent) and len(absent) <= 8
        num = len(mapped["negative_draws"])
        assert num and not any(len(target) for target in mapped["targets"][-num:])
