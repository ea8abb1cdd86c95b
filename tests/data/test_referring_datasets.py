"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO from their published files to records."""

import json
import os
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as rle

from openworldsam.data.check import read_record
from openworldsam.data.datasets.benchmarks import EXPECTED_IMAGES
from openworldsam.data.datasets.referring import REFERRING, Counts
from openworldsam.data.prepare.referring import convert, count, read_refs
from openworldsam.data.records.referring import load_referring
from openworldsam.data.records.rle import union_mask

SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]


def ref(ref_id, ann_id, image_id, split, *texts):
    """A reference as refs(umd).p has it."""
    sentences = [
        {"tokens": text.split(), "raw": text, "sent_id": 10 * ref_id + n, "sent": text.lower()}
        for n, text in enumerate(texts)
    ]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": 18,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "image_id": image_id,
        "split": split,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


REFS = [
    ref(0, 11, 1, "train", "The Dog on the left", "a brown dog "),
    ref(1, 12, 1, "train", "dog at the right"),
    ref(2, 21, 2, "val", "One Dog"),
    ref(3, 11, 1, "train", "the older dog"),  # the same object once more
    ref(4, 31, 3, "test", "not for us"),
]


def instances():
    return {
        "images": [
            {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": 6, "width": 8, "license": 1}
            for i in (1, 2, 3)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i // 10,
                "category_id": 18,
                "bbox": [1, 1, 3, 3],
                "area": 9,
                "iscrowd": 0,
                "segmentation": [SQUARE],
            }
            for i in (11, 12, 13, 21, 31)
        ],
        "categories": [{"supercategory": "animal", "id": 18, "name": "dog"}],
    }


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with the published files of two splits, and their images."""
    for folder in ("refcocog", "coco/train2017"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "refcocog/refs(umd).p").write_bytes(pickle.dumps(REFS, protocol=2))
    (tmp_path / "refcocog/instances.json").write_text(json.dumps(instances()))
    for i in (1, 2):
        (tmp_path / f"coco/train2017/{i:012d}.jpg").touch()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def small_counts(monkeypatch):
    splits = {"train": Counts(1, 3, 4), "val": Counts(1, 1, 1), "test": Counts(1, 1, 1)}
    monkeypatch.setitem(REFERRING, "refcocog", REFERRING["refcocog"]._replace(splits=splits))


def test_from_the_published_files_to_records(root, prepare, small_counts, capsys):
    assert prepare("refcocog") == 0
    assert "1 images, 2 objects, 4 sentences" in capsys.readouterr().out
    (record,) = DatasetCatalog.get("refcocog_umd_train")
    assert record == {
        "file_name": str(root / "coco/train2017/000000000001.jpg"),
        "image_id": 1,
        "height": 6,
        "width": 8,
        "annotations": [
            {
                "id": 11,
                "sentences": ["the dog on the left", "a brown dog", "the older dog"],
                "segmentation": [SQUARE],
            },
            {
                "id": 12,
                "sentences": ["dog at the right"],
                "segmentation": [SQUARE],
            },
        ],
    }
    (record,) = DatasetCatalog.get("refcocog_umd_val")
    assert record["image_id"] == 2 and record["annotations"][0]["sentences"] == ["one dog"]


def test_other_counts_stop_it_unless_told_otherwise(root, prepare, capsys):
    assert prepare("refcocog") == 2
    error = capsys.readouterr().err
    assert "Counts(images=1, references=3, sentences=4)" in error and "sentences=80512" in error
    assert not (root / "coco/annotations").exists()
    assert prepare("refcocog", "--no-check") == 0
    assert "warning" in capsys.readouterr().err and (root / "coco/annotations/refcocog_umd_val.json").exists()


def test_published_counts():
    totals = {name: tuple(map(sum, zip(*REFERRING[name].splits.values(), strict=True))) for name in list(REFERRING)[:3]}
    assert totals == {
        "refcoco": (19_994, 50_000, 142_210),
        "refcoco_plus": (19_992, 49_856, 141_564),
        "refcocog": (25_799, 49_822, 95_010),
    }
    assert count(REFS, "train") == (1, 3, 4)
    assert (EXPECTED_IMAGES["refcoco_plus_unc_testB"], EXPECTED_IMAGES["grefcoco_val"]) == (750, 1_500)


@pytest.mark.parametrize(
    ("name", "folder", "prefix"),
    [("refcoco", "refcoco", "refcoco_unc"), ("refcoco_plus", "refcoco+", "refcoco_plus_unc")],
)
def test_all_splits_and_sentences_of_refcoco(root, prepare, capsys, name, folder, prefix):
    refs = [
        REFS[0],
        ref(1, 21, 2, "testA", "a", "B", "c "),
        ref(2, 31, 3, "testB", "d"),
        ref(3, 12, 1, "val", "e", "f"),
    ]
    (root / folder).mkdir(exist_ok=True)
    (root / folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / folder / "instances.json").write_text(json.dumps(instances()))
    (root / "coco/train2017/000000000003.jpg").touch()
    assert prepare(name) == 2 and "--no-check" in capsys.readouterr().err
    assert prepare(name, "--no-check") == 0
    sentences = {
        split: [texts for record in DatasetCatalog.get(f"{prefix}_{split}") for texts in record.sentences()]
        for split in ("train", "val", "testA", "testB")
    }
    assert sentences == {
        "train": [("the dog on the left", "a brown dog")],
        "val": [("e", "f")],
        "testA": [("a", "b", "c")],
        "testB": [("d",)],
    }


@pytest.fixture
def grefs(root):
    """A root with gRefCOCO: two targets, none, one, and a target with a crowd."""
    objects = instances()
    objects["annotations"][1]["segmentation"] = [[5, 3, 8, 3, 8, 6, 5, 6]]
    crowd = {**objects["annotations"][2], "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": [42, 6]}}
    objects["annotations"][2] = crowd
    refs = [
        {**ref(200_000, [11, 12], 1, "val", "Both dogs"), "no_target": False},
        {**ref(200_001, [-1], 1, "val", "the cat"), "no_target": True},
        {**ref(3, [12], 1, "val", "lower dog", "dog at the right"), "no_target": False},
        {**ref(4, [12, 13], 1, "testA", "all"), "no_target": False},
    ]
    (root / "grefcoco").mkdir()
    (root / "grefcoco/grefs(unc).json").write_text(json.dumps(refs))
    (root / "grefcoco/instances.json").write_text(json.dumps(objects))
    return root


def test_grefcoco_unites_targets_and_knows_expressions_without_any(grefs, prepare, capsys):
    Image.new("RGB", (8, 6)).save(grefs / "coco/train2017/000000000001.jpg")
    assert prepare("grefcoco", "--no-check") == 0
    assert "grefcoco_val.json: 1 images, 3 expressions, 4 sentences" in capsys.readouterr().out
    (record,) = DatasetCatalog.get("grefcoco_val")
    assert read_record(record)[0] is None
    both, nothing, right = record.read_referring()
    first, second = (union_mask([polygon], 6, 8) for polygon in (SQUARE, [5, 3, 8, 3, 8, 6, 5, 6]))
    assert np.array_equal(both.mask, first | second) and both.sentences == ("both dogs",)
    assert not nothing.mask.any() and [each.no_target for each in (both, nothing, right)] == [False, True, False]
    assert np.array_equal(right.mask, second) and right.sentences == ("lower dog", "dog at the right")
    (record,) = DatasetCatalog.get("grefcoco_testA")
    (everything,) = record.read_referring()
    below = np.zeros((6, 8), bool)
    below[:, 7] = True
    assert np.array_equal(everything.mask, second | below)


def test_grefcoco_of_another_form_is_an_error(grefs, prepare, capsys):
    assert prepare("grefcoco") == 2 and "published is Counts(images=1500" in capsys.readouterr().err
    path = grefs / "grefcoco/grefs(unc).json"
    refs = json.loads(path.read_text())
    for change, message in (({"ann_id": 11}, "has no references"), ({"ann_id": [99]}, "lacks 1 objects of val")):
        path.write_text(json.dumps([{**refs[0], **change}]))
        assert prepare("grefcoco", "--no-check") == 2 and message in capsys.readouterr().err
    path.write_text("[")
    assert prepare("grefcoco", "--no-check") == 2 and "is damaged" in capsys.readouterr().err


def test_missing_files_are_named(root, prepare, small_counts, capsys):
    (root / "refcocog/instances.json").unlink()
    assert prepare("refcocog") == 2
    assert "instances.json not found" in capsys.readouterr().err
    assert prepare("refcocog", "--refs", root / "none.p") == 2
    error = capsys.readouterr().err
    assert "none.p and " in error and "instances.json not found" in error
    with pytest.raises(FileNotFoundError, match=r"refcocog_umd_val\.json not found.*openworldsam prepare refcocog"):
        DatasetCatalog.get("refcocog_umd_val")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_refs_of_every_pickle_protocol(tmp_path, protocol):
    path = tmp_path / "refs(umd).p"
    path.write_bytes(pickle.dumps(REFS, protocol))
    assert read_refs(path) == REFS


def test_refs_written_by_python_2(tmp_path):
    # protocol 0 of Python 2: byte strings (S), a long integer (L)
    path = tmp_path / "refs(umd).p"
    path.write_bytes(b"(lp0\n(dp1\nS'ann_id'\nL7L\nsS'image_id'\nI1\nsS'split'\nS'val'\nsS'sentences'\n(lsa.")
    assert read_refs(path) == [{"ann_id": 7, "image_id": 1, "split": "val", "sentences": []}]


def numpy_number(code, data):
    """Pickle opcodes of a NumPy scalar, as Python 2 writes it with protocol 2."""
    dtype = b"cnumpy\ndtype\n" + text(code) + b"K\x00K\x01\x87R" + b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xff"
    return b"cnumpy.core.multiarray\nscalar\n" + dtype + b"J\xff\xff\xff\xffK\x00tb" + text(data) + b"\x86R"


def text(data):
    """Pickle opcodes of a short byte string of Python 2."""
    return b"U" + bytes([len(data)]) + data


def test_numbers_of_numpy_and_texts_in_latin_1_from_python_2(tmp_path):
    path = tmp_path / "refs(umd).p"
    sentence = (
        b"}(" + text(b"raw") + text("caf\xe9".encode("latin-1")) + text(b"sent") + text("caf\xe9".encode()) + b"u"
    )
    entries = {
        b"ann_id": numpy_number(b"i8", (2**40 + 7).to_bytes(8, "little")),
        b"image_id": numpy_number(b"u2", b"\x01\x02"),
        b"split": text(b"val"),
        b"sentences": b"]" + sentence + b"a",
        b"score": numpy_number(b"f8", np.float64(0.5).tobytes()),
    }
    content = b"".join(text(key) + value for key, value in entries.items())
    path.write_bytes(b"\x80\x02]}(" + content + b"ua.")
    (found,) = read_refs(path)
    texts = {"raw": "caf\xe9", "sent": "caf\xe9"}
    assert found == {"ann_id": 2**40 + 7, "image_id": 513, "split": "val", "sentences": [texts], "score": 0.5}
    assert {type(found[key]) for key in ("ann_id", "image_id", "score")} == {int, float}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_numpy_from_python_3(tmp_path, protocol):
    path = tmp_path / "refs(umd).p"
    numbers = {"ann_id": np.int64(11), "image_id": np.uint8(200), "big": np.array([5], ">i4")[0], "flag": np.bool_(1)}
    path.write_bytes(pickle.dumps([{**REFS[0], **numbers}], protocol))
    expected = {**REFS[0], "ann_id": 11, "image_id": 200, "big": 5, "flag": True}
    assert read_refs(path) == [expected] and type(read_refs(path)[0]["ann_id"]) is int


@pytest.mark.parametrize(("code", "data"), [(b"O8", b"\x00" * 8), (b"S8", b"abcdefgh"), (b"i8", b"\x01"), (b"", b"")])
def test_what_is_no_number_of_numpy_is_refused(tmp_path, code, data):
    path = tmp_path / "refs(umd).p"
    path.write_bytes(b"\x80\x02]" + numpy_number(code, data) + b"a.")
    with pytest.raises(ValueError, match="not trusted or is damaged"):
        read_refs(path)


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_runs_code_is_refused(tmp_path, protocol):
    path, target = tmp_path / "refs(umd).p", tmp_path / "made by the pickle"
    path.write_bytes(pickle.dumps([*REFS, Evil(str(target))], protocol))
    with pytest.raises(ValueError, match=r"posix\.mkdir; only lists, dicts, numbers and texts|nt\.mkdir"):
        read_refs(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", pickle.dumps(REFS)[:-40], b"<html>"),
        *map(pickle.dumps, ({"a": 1}, [1], [{}], [{**REFS[0], "ann_id": [1]}], [{**REFS[0], "sentences": None}])),
    ],
)
def test_other_content_than_references_is_an_error(tmp_path, content):
    path = tmp_path / "refs(umd).p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\(umd\)\.p"):
        read_refs(path)


def test_references_without_their_object_are_an_error():
    with pytest.raises(ValueError, match="lacks 1 objects of train, such as 99"):
        convert([*REFS, ref(5, 99, 1, "train", "x")], instances(), "train")
    content = instances()
    del content["images"][0]
    with pytest.raises(ValueError, match="list of images does not have 1"):
        convert(REFS, content, "train")
    with pytest.raises(ValueError, match="no 'annotations'"):
        convert(REFS, {"images": []}, "train")


def test_public_file_with_sentences_as_objects(tmp_path):
    content = convert(REFS, instances(), "val")
    content["annotations"][0]["sentences"] = [{"raw": "One DOG", "sent": "one dog"}, {"raw": " "}]
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "000000000002.jpg").touch()
    (record,) = load_referring(tmp_path / "val.json", tmp_path)
    assert record["annotations"][0]["sentences"] == ["one dog"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "no json of referring expressions: it has no 'images'"),
        (lambda c: c["images"].clear(), "list of images does not have 2"),
        (lambda c: c["annotations"][0].pop("sentences"), "it has no 'sentences'"),
        (lambda c: c["annotations"][0].update(sentences=[]), "no usable image"),
        (lambda c: c["annotations"].clear(), "no usable image"),
        (lambda c: c["annotations"][0].update(sentences="abc"), "sentences of object 21 are no list of texts: abc"),
        (lambda c: c["annotations"][0].update(sentences=None), "sentences of object 21 are no list"),
        (lambda c: c["annotations"][0].update(sentences=["a", 1]), "sentences of object 21 are no list"),
        (lambda c: c["annotations"][0].update(sentences=[{"raw": None}]), "object 21 .*'raw': None"),
        (lambda c: c["annotations"][0].update(sentences=[{}]), "sentences of object 21 are no list"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "1 objects have the id of another one, such as 21"),
        (
            lambda c: (c["images"][0].update(id="2"), c["annotations"][0].update(image_id="2")),
            "on COCO's images, whose ids are numbers, got '2'",
        ),
    ],
)
def test_bad_json_is_an_error(tmp_path, change, message):
    content = convert(REFS, instances(), "val")
    change(content)
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_referring(tmp_path / "val.json", tmp_path)


def test_an_object_that_lacks_its_mask_is_damaged_and_no_other_is(tmp_path):
    content = convert(REFS, instances(), "val")
    content["annotations"].append({**content["annotations"][0], "id": 99})
    del content["annotations"][0]["segmentation"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "000000000002.jpg").touch()
    (record,) = load_referring(tmp_path / "val.json", tmp_path)
    assert len(record.sentences()) == 2 and len(record.read_referring()) == 1
    assert record.damaged_objects() == ["object 21: a segmentation without a polygon of three points"]


def test_without_any_image_is_an_error(tmp_path):
    (tmp_path / "val.json").write_text(json.dumps(convert(REFS, instances(), "val")))
    with pytest.raises(FileNotFoundError, match="1 of 1 files"):
        load_referring(tmp_path / "val.json", tmp_path)


def test_union_of_overlapping_polygons():
    mask = union_mask([SQUARE, [2, 2, 6, 2, 6, 5, 2, 5]], 6, 8)
    expected = np.zeros((6, 8), bool)
    expected[1:4, 1:4] = expected[2:5, 2:6] = True
    assert mask.dtype == bool and np.array_equal(mask, expected)


def test_union_of_rle():
    expected = union_mask([SQUARE], 6, 8)
    code = rle.encode(np.asfortranarray(expected.astype(np.uint8)))
    text = {"size": code["size"], "counts": code["counts"].decode()}
    plain = {"size": [2, 2], "counts": [1, 2, 1]}
    assert np.array_equal(union_mask(text, 6, 8), expected)
    assert union_mask(plain, 2, 2).tolist() == [[False, True], [True, False]]
    with pytest.raises(ValueError, match=r"its image \[6, 9\]"):
        union_mask(text, 6, 9)


@pytest.mark.parametrize("segmentation", [[], [[]], [[1, 1, 4, 4]]])
def test_segmentation_without_area_is_an_error(segmentation):
    with pytest.raises(ValueError, match="three points"):
        union_mask(segmentation, 6, 8)


DAMAGED = [
    *(None, 5, "abc", {}, [1, 2, 3], [None], ["abcdefgh"], [SQUARE, "abcdefgh"], [[1, 1, 4, 1, 4, None]]),
    *([[1, 1, 4, 1, 4, number]] for number in (float("nan"), float("inf"), 1e9)),
    *({"size": [6, 8], "counts": counts} for counts in (5, None, "", "zzzz", {}, [5], ["a"], [50, -4, 2], [[48]])),
    *({"size": size, "counts": [48]} for size in (None, 5, [6], [6, 9], {})),
    {"counts": [48]},
    {"size": [6, 8]},
]


@pytest.mark.parametrize("segmentation", DAMAGED, ids=str)
def test_damaged_segmentation_is_an_error(segmentation):
    with pytest.raises(ValueError):
        union_mask(segmentation, 6, 8)


def test_references_without_texts_are_an_error():
    with pytest.raises(ValueError, match="sentences of object 12 are no list of texts"):
        convert([{**REFS[1], "sentences": [{"raw": None}]}], instances(), "train")


def test_points_beside_polygons_do_not_matter():
    assert np.array_equal(union_mask([[1, 1, 4, 4], SQUARE], 6, 8), union_mask([SQUARE], 6, 8))


def test_real_objects(shared):
    for item in json.loads((shared / "data/refcocog_sample/expressions.json").read_text()):
        mask = union_mask(item["segmentation"], item["height"], item["width"])
        x, y, width, height = item["bbox"]
        rows, columns = np.nonzero(mask)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.subtract(found, [x, y, x + width, y + height])).max() < 2
