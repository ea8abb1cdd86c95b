"""Training examples from records: prompts, masks, and errors."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from panopticapi.utils import id2rgb
from PIL import Image

from openworldsam.data.datasets.coco import CATEGORIES
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.records import as_record
from openworldsam.data.records.panoptic import load_panoptic

NAMES = tuple(f"class {c}" for c in range(12))
IS_THING = tuple(c < 8 for c in range(12))
HEIGHT, WIDTH = 10, 24


def generator(seed=0):
    return np.random.default_rng(seed)


def write_image(folder, height=HEIGHT, width=WIDTH, name="image.png"):
    image = generator(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / name)
    return image


def panoptic(folder, segments, ids=None, **changes):
    """A record whose segments (id, class, crowd) are strips of two columns each, from the left; the rest is void."""
    write_image(folder)
    if ids is None:
        ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint32)
        for strip, (segment, _, _) in enumerate(segments):
            ids[:, 2 * strip : 2 * strip + 2] = segment
    Image.fromarray(id2rgb(ids)).save(folder / "panoptic.png")
    record = {
        "file_name": str(folder / "image.png"),
        "image_id": 5,
        "height": HEIGHT,
        "width": WIDTH,
        "pan_seg_file_name": str(folder / "panoptic.png"),
        "segments_info": [{"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments],
    }
    return as_record({**record, **changes})


def strips(*numbers):
    masks = np.zeros((len(numbers), HEIGHT, WIDTH), dtype=bool)
    for mask, strip in zip(masks, numbers, strict=True):
        mask[:, 2 * strip : 2 * strip + 2] = True
    return torch.from_numpy(masks)


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def referring(folder, *objects, **changes):
    """A record of objects (sentences, polygons)."""
    write_image(folder)
    annotations = [
        {"id": i, "sentences": list(sentences), "segmentation": polygons, "bbox": [0, 0, 1, 1], "category_id": 0}
        for i, (sentences, polygons) in enumerate(objects)
    ]
    size = {"height": HEIGHT, "width": WIDTH, **changes}
    return as_record({"file_name": str(folder / "image.png"), "image_id": 6, **size, "annotations": annotations})


def mapper(**options):
    return DatasetMapper(class_names=NAMES, is_thing=IS_THING, **options)


def test_a_panoptic_record(tmp_path):
    # id 70000 needs the blue channel of the PNG; class 9 comes twice, with class 2 between
    record = panoptic(tmp_path, [(70000, 9, 0), (300, 2, 0), (4, 9, 0), (8, 0, 0)])
    mapped = mapper()(record, generator())
    image = np.asarray(Image.open(record["file_name"]))
    assert mapped["image"].dtype == torch.uint8
    torch.testing.assert_close(mapped["image"], torch.from_numpy(image.transpose(2, 0, 1).copy()))
    assert mapped["class_ids"] == [0, 2, 9]
    assert mapped["prompts"] == ["class 0", "class 2", "class 9"]
    assert mapped["is_thing"] == [True, True, False]
    assert mapped["num_classes"] == 12
    for target, expected in zip(mapped["targets"], [strips(3), strips(1), strips(0, 2)], strict=True):
        assert target.dtype == torch.bool
        torch.testing.assert_close(target, expected)
    assert [mapped[key] for key in ("height", "width", "image_id")] == [HEIGHT, WIDTH, 5]
    assert mapped["file_name"] == record["file_name"]


def test_crowds_are_left_out(tmp_path):
    mapped = mapper()(panoptic(tmp_path, [(1, 3, 1), (2, 3, 0), (3, 4, 1)]), generator())
    assert mapped["class_ids"] == [3]
    torch.testing.assert_close(mapped["targets"][0], strips(1))


def test_an_image_with_crowds_only_has_nothing_to_learn(tmp_path):
    assert mapper()(panoptic(tmp_path, [(1, 3, 1), (2, 4, 1)]), generator()) is None
    assert mapper()(panoptic(tmp_path, []), generator()) is None


def test_segments_without_a_pixel_are_left_out(tmp_path):
    record = panoptic(tmp_path, [(1, 3, 0), (2, 4, 0)])
    absent = [{"id": 98, "category_id": 3, "iscrowd": 0}, {"id": 99, "category_id": 6, "iscrowd": 0}]
    record["segments_info"] = absent + record["segments_info"]
    mapped = mapper()(record, generator())
    assert mapped["class_ids"] == [3, 4] and [len(target) for target in mapped["targets"]] == [1, 1]


def test_too_many_classes_are_drawn_from_evenly(tmp_path):
    record = panoptic(tmp_path, [(c + 1, c, 0) for c in reversed(range(10))])
    mapped = mapper(max_prompts=6)
    source, visits = generator(), 300
    drawn = [tuple(mapped(record, source)["class_ids"]) for _ in range(visits)]
    assert all(len(set(classes)) == 6 and classes == tuple(sorted(classes)) for classes in drawn)
    counts = Counter(c for classes in drawn for c in classes)
    expected, deviation = 0.6 * visits, (visits * 0.6 * 0.4) ** 0.5
    assert set(counts) == set(range(10))
    assert all(abs(count - expected) < 4 * deviation for count in counts.values()), counts
    assert len(set(drawn)) > 100  # of 210 sets of six: classes are not drawn in blocks


def test_drawn_classes_keep_their_own_masks(tmp_path):
    record = panoptic(tmp_path, [(c + 1, c, 0) for c in range(10)])
    mapped = mapper(max_prompts=3)(record, generator(3))
    for class_id, name, target in zip(mapped["class_ids"], mapped["prompts"], mapped["targets"], strict=True):
        assert name == NAMES[class_id]
        torch.testing.assert_close(target, strips(class_id))


def test_max_prompts_at_its_bounds(tmp_path):
    record = panoptic(tmp_path, [(c + 1, c, 0) for c in range(10)])
    for limit in (0, 10, 11):
        assert mapper(max_prompts=limit)(record, generator())["class_ids"] == list(range(10))
    assert len(mapper(max_prompts=1)(record, generator())["class_ids"]) == 1


def test_the_generator_alone_decides(tmp_path):
    record = panoptic(tmp_path, [(c + 1, c, 0) for c in range(10)])
    options = {"max_prompts": 4, "flip": True, "large_scale_jitter": True, "image_size": 32}
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed + len(results))
        torch.manual_seed(seed + len(results))
        results.append([mapper(**options)(record, source) for source in [generator(seed)] for _ in range(5)])
    for first, second in zip(*results[:2], strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            assert first["class_ids"] == second["class_ids"]
            torch.testing.assert_close(first["image"], second["image"], rtol=0, atol=0)
            torch.testing.assert_close(first["targets"], second["targets"])
    assert any(a and b and a["class_ids"] != b["class_ids"] for a, b in zip(results[0], results[2], strict=True))


def test_an_image_of_another_size_is_refused(tmp_path):
    message = r"image\.png is 24 x 10, its annotation is 10 x 24"
    with pytest.raises(ValueError, match=message):
        mapper()(panoptic(tmp_path, [(1, 3, 0)], height=WIDTH, width=HEIGHT), generator())
    with pytest.raises(ValueError, match=message):
        mapper()(referring(tmp_path, (["a"], [box(1, 1, 5, 5)]), height=WIDTH, width=HEIGHT), generator())


def test_a_panoptic_png_of_another_size_is_refused(tmp_path):
    record = panoptic(tmp_path, [(1, 3, 0)], ids=np.ones((HEIGHT, WIDTH + 1), dtype=np.uint32))
    with pytest.raises(ValueError, match=r"panoptic\.png is 25 x 10, its image is 24 x 10"):
        mapper()(record, generator())


def test_ids_that_the_json_lacks_are_refused(tmp_path):
    record = panoptic(tmp_path, [(1, 3, 0), (70001, 4, 1)])
    mapper()(record, generator())  # void and crowds are known
    del record["segments_info"][1]
    with pytest.raises(ValueError, match=r"panoptic\.png has ids that its json does not: \[70001\]"):
        mapper()(record, generator())


@pytest.mark.parametrize("lost", ["image.png", "panoptic.png"])
def test_missing_and_damaged_files_are_named(tmp_path, lost):
    record = panoptic(tmp_path, [(1, 3, 0)])
    content = (tmp_path / lost).read_bytes()
    (tmp_path / lost).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=lost):
        mapper()(record, generator())
    (tmp_path / lost).unlink()
    with pytest.raises(FileNotFoundError, match=lost):
        mapper()(record, generator())


def test_one_sentence_of_each_object_is_drawn(tmp_path):
    dogs, cats = [f"dog {n}" for n in range(4)], ["cat 0", "cat 1"]
    record = referring(tmp_path, (dogs, [box(0, 0, 6, 6)]), (cats, [box(10, 2, 14, 6)]))
    source = generator()
    drawn = [tuple(DatasetMapper()(record, source)["prompts"]) for _ in range(200)]
    counts = Counter(drawn)
    assert set(counts) == {(dog, cat) for dog in dogs for cat in cats}
    assert min(counts.values()) > 8  # 25 expected


def test_referring_objects_keep_their_order_and_have_one_mask_each(tmp_path):
    places = [(16, 4), (1, 1), (8, 3)]
    record = referring(tmp_path, *[([f"at {x}"], [box(x, y, x + 4, y + 4)]) for x, y in places])
    mapped = DatasetMapper(max_prompts=1)(record, generator())  # the limit is for classes
    assert mapped["prompts"] == ["at 16", "at 1", "at 8"]
    assert mapped["class_ids"] == [0, 1, 2] and mapped["is_thing"] == [True] * 3 and mapped["num_classes"] == 3
    for (x, y), target in zip(places, mapped["targets"], strict=True):
        assert target.dtype == torch.bool and target.shape == (1, HEIGHT, WIDTH)
        expected = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
        expected[:, y : y + 4, x : x + 4] = True
        torch.testing.assert_close(target, expected)


def test_overlapping_polygons_are_united(tmp_path):
    parts = [box(2, 2, 8, 8), box(4, 4, 12, 9), box(20, 0, 22, 4)]
    record = referring(tmp_path, (["a"], parts), *[(["b"], [part]) for part in parts])
    union, *single = DatasetMapper()(record, generator())["targets"]
    assert union.dtype == torch.bool
    torch.testing.assert_close(union, single[0] | single[1] | single[2])
    assert (single[0] & single[1]).any()


EMPTY = [1, 1, 9, 1, 5, 1]  # on a line


def test_an_object_with_an_empty_mask_is_left_out(tmp_path):
    record = referring(tmp_path, (["nothing"], [EMPTY]), (["a box"], [box(1, 1, 5, 5)]), (["nor this"], [EMPTY]))
    mapped = DatasetMapper()(record, generator())
    assert mapped["prompts"] == ["a box"]
    assert [len(mapped[key]) for key in ("class_ids", "is_thing", "targets")] == [1, 1, 1]
    assert mapped["targets"][0].sum() == 16
    assert DatasetMapper()(referring(tmp_path, (["nothing"], [EMPTY])), generator()) is None


def test_class_ids_stay_below_their_number_when_an_object_is_left_out(tmp_path):
    record = referring(tmp_path, (["nothing"], [EMPTY]), (["a box"], [box(1, 1, 5, 5)]))
    mapped = DatasetMapper()(record, generator())
    assert max(mapped["class_ids"]) < mapped["num_classes"]


def test_images_with_expressions_are_not_mirrored(tmp_path):
    record = referring(tmp_path, (["dog on the left"], [box(1, 1, 5, 5)]))
    source = generator()
    for _ in range(20):
        mapped = DatasetMapper(flip=True)(record, source)
        is_left = mapped["targets"][0][..., : WIDTH // 2].any()
        assert ("left" in mapped["prompts"][0]) == bool(is_left)


def test_options_come_from_the_config(tiny_cfg, tmp_path):
    tiny_cfg.merge_from_list(["INPUT.MAX_PROMPTS", 2, "INPUT.LARGE_SCALE_JITTER", True])
    record = panoptic(tmp_path, [(c + 1, c, 0) for c in range(10)])
    source = generator()
    configured = DatasetMapper(tiny_cfg, class_names=NAMES, is_thing=IS_THING)
    results = [mapped for _ in range(10) if (mapped := configured(record, source)) is not None]
    assert {len(mapped["prompts"]) for mapped in results} <= {1, 2}
    assert {mapped["image"].shape for mapped in results} == {(3, 128, 128)}
    assert configured.flip is False


def test_default_config_trains_on_six_classes_without_augmentation(tiny_cfg):
    default = DatasetMapper(tiny_cfg)
    assert (default.max_prompts, default.flip, default.large_scale_jitter) == (6, False, False)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_training_step_on_mapped_images(build, tmp_path, augmented):
    (tmp_path / "referring").mkdir()
    options = {"flip": augmented, "large_scale_jitter": augmented, "image_size": 64}
    classes = panoptic(tmp_path, [(c + 1, c % 4, 0) for c in range(10)])
    objects = referring(tmp_path / "referring", (["a dog"], [box(0, 0, 12, 9)]), (["two cats"], [box(8, 1, 23, 9)]))
    batch = [mapper(**options)(record, generator(1)) for record in (classes, objects)]
    assert None not in batch
    train_one_step(build(), batch)


def train_one_step(model, batch):
    model.train()
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-3)
    before = [parameter.clone() for parameter in model.adapter.parameters()]
    loss = sum(model(batch).values())
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and loss > 0
    after = list(model.adapter.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_real_panoptic_annotations(shared, build):
    folder = shared / "data/coco_panoptic_sample"
    records = load_panoptic(folder / "panoptic.json", folder / "images", folder / "panoptic", categories=CATEGORIES)
    names, is_thing = [c.name for c in CATEGORIES], [c.is_thing for c in CATEGORIES]
    complete = DatasetMapper(class_names=tuple(names), is_thing=tuple(is_thing), max_prompts=0)
    batch = [complete(record, generator()) for record in records]
    for record, mapped in zip(records, batch, strict=True):
        segments = [s for s in record["segments_info"] if not s["iscrowd"]]
        assert mapped["class_ids"] == sorted({s["category_id"] for s in segments})
        assert mapped["prompts"] == [names[c] for c in mapped["class_ids"]]
        for class_id, target in zip(mapped["class_ids"], mapped["targets"], strict=True):
            areas = [s["area"] for s in segments if s["category_id"] == class_id]
            assert target.flatten(1).sum(1).tolist() == areas
    assert sum(len(x["prompts"]) for x in batch) > 10
    train_one_step(build(), batch[:1])


def test_real_referring_annotations(shared):
    folder = shared / "data/refcocog_sample"
    objects = json.loads((folder / "expressions.json").read_text())
    for name in {o["image"] for o in objects}:
        own = [o for o in objects if o["image"] == name]
        record = {
            "file_name": str(folder / "images" / name),
            **{key: own[0][key] for key in ("image_id", "height", "width")},
            "annotations": [{**o, "sentences": [o["sentence"]]} for o in own],
        }
        mapped = DatasetMapper()(as_record(record), generator())
        assert mapped["prompts"] == [o["sentence"] for o in own]
        for o, target in zip(own, mapped["targets"], strict=True):
            _, rows, columns = target.nonzero(as_tuple=True)
            x, y, width, height = o["bbox"]
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(found, [x, y, x + width, y + height], atol=1.5)
