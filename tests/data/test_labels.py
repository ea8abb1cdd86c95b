"""Label images: any bit depth, their coding, and reading them in training and evaluation."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.records.coco_json import Category
from openworldsam.data.records.labels import LabelCoding, load_labels, read_labels
from openworldsam.evaluation.examples import EvaluationDataset, Unreadable

CODING = LabelCoding.of([Category(3, "cat", True), Category(9, "sky", False)], ignored=[0, 255])
LABELS = np.array([[0, 3, 3, 9], [255, 3, 9, 9], [255, 0, 9, 9]])


@pytest.fixture
def make(tmp_path):
    """Makes a record of an image of 3 x 4 pixels and a label image of the given pixels."""

    def write(labels=LABELS, dtype=np.uint8, suffix=".png", coding=CODING, size=(4, 3), **options):
        Image.new("RGB", size).save(tmp_path / "a.png")
        path = tmp_path / f"labels{suffix}"
        Image.fromarray(np.asarray(labels, dtype)).save(path, **options)
        return load_labels("a", [(tmp_path / "a.png", path)], coding, tmp_path)[0]

    return write


@pytest.mark.parametrize(
    ("dtype", "suffix"), [(np.uint8, ".png"), (np.uint16, ".png"), (np.uint16, ".tif"), (np.int32, ".tif")]
)
def test_each_present_class_is_a_segment(make, dtype, suffix):
    record = make(dtype=dtype, suffix=suffix)
    ids, segments = record.read_panoptic()
    assert ids.tolist() == [[0, 1, 1, 2], [0, 1, 2, 2], [0, 0, 2, 2]]
    assert segments == [
        {"id": 1, "category_id": 0, "isthing": True, "iscrowd": False, "area": 3},
        {"id": 2, "category_id": 1, "isthing": False, "iscrowd": False, "area": 5},
    ]
    assert record.segments() == segments and not record.is_referring


def test_palettes_and_large_values(make):
    coding = LabelCoding.of([Category(845, "rail", False)], [65_535])
    assert make([[845] * 4] * 3, np.uint16, ".tif", coding).read_panoptic()[0].tolist() == [[1] * 4] * 3
    record = make()
    indexed = Image.new("P", (4, 3))
    indexed.putpalette([7, 7, 7] * 256)
    indexed.putdata(LABELS.ravel().tolist())
    indexed.save(record["sem_seg_file_name"])
    assert record.read_panoptic()[0].max() == 2


def test_the_mapper_and_the_evaluation_read_it_unchanged(make):
    record = make()
    mapper = DatasetMapper(class_names=("cat", "sky"), is_thing=CODING.is_thing)
    mapped = mapper(record, np.random.default_rng(0))
    assert mapped["prompts"] == ["cat", "sky"] == mapper.texts(record)
    assert [int(target.sum()) for target in mapped["targets"]] == [3, 5]
    (inputs, truth) = EvaluationDataset([record], class_names=("cat", "sky"), is_thing=CODING.is_thing)[0]
    assert inputs["class_ids"] == [0, 1] and len(truth.segments) == 2


def grey_png(samples, bits):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""
    digits = np.unpackbits(np.asarray(samples, np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    lines = np.packbits(digits.reshape(len(samples), -1), axis=1)
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", np.shape(samples)[1], len(samples), bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_samples_of_few_bits_are_read_as_they_are(tmp_path, bits):
    samples = np.arange(35).reshape(5, 7) % 2**bits
    (tmp_path / "a.png").write_bytes(grey_png(samples, bits))
    assert read_labels(tmp_path / "a.png").tolist() == samples.tolist()


@pytest.mark.parametrize("white", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_samples_of_a_tiff_are_read_as_they_are_whichever_value_is_white(tmp_path, bits, white):
    samples = np.arange(48).reshape(6, 8) % 2**bits
    digits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    pixels = np.packbits(digits.reshape(6, -1), axis=1).tobytes()
    # width, height, bits, no compression, 0 is white or black, and the pixels: one strip, right after the header
    tags = {256: 8, 257: 6, 258: bits, 259: 1, 262: 1 - white, 273: 8, 277: 1, 278: 6, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    (tmp_path / "a.tif").write_bytes(header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert read_labels(tmp_path / "a.tif").tolist() == samples.tolist()


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_label_image_is_turned_as_its_image_is(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    labels = np.array([[3, 9, 9], [3, 3, 0]], np.uint8)
    Image.fromarray(labels).save(tmp_path / f"labels{suffix}", exif=exif)
    Image.fromarray(labels).save(tmp_path / "a.png", exif=exif)
    (record,) = load_labels("a", [(tmp_path / "a.png", tmp_path / f"labels{suffix}")], CODING, tmp_path)
    image, (ids, _) = record.read_image()[..., 0], record.read_panoptic()
    assert np.array_equal(ids, np.select([image == 3, image == 9], [1, 2]))
    assert (record["height"], record["width"]) == image.shape != ids.shape[::-1]


def test_nothing_but_void_has_no_segment(make):
    ids, segments = make(np.zeros((3, 4))).read_panoptic()
    assert not ids.any() and segments == []


def test_an_offset_moves_the_values_and_a_class_wins_over_an_ignored_value():
    coding = LabelCoding.of([Category(0, "wall", False)], ignored=range(3), offset=1)
    assert coding.values == (1,) and coding.ignored == {0, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.where(LABELS == 9, 10, LABELS)}, r"labels.png has the label 10 \(5 such pixels\).* 3 to 9"),
        ({"labels": LABELS[:2]}, "labels.png is 4 x 2, its image is 4 x 3"),
        ({"labels": np.zeros((3, 4, 3))}, r"labels.png is no label image.*\(3, 4, 3\)"),
        ({"dtype": np.float32, "suffix": ".tif"}, "whole numbers, got .* float32"),
        ({"labels": LABELS - 1, "dtype": np.int32, "suffix": ".tif"}, "has the values -1 to 254, labels are 0"),
    ],
)
def test_bad_labels_name_file_and_value(make, change, message):
    record = make(**change)
    with pytest.raises(ValueError, match=message):
        record.read_panoptic()
    assert isinstance(EvaluationDataset([record])[0], Unreadable)


def test_damaged_and_missing_label_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a.png is not a readable label image"):
        read_labels(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"label image .*b.png not found"):
        read_labels(tmp_path / "b.png")


def test_missing_and_unreadable_images_stay_records(make, tmp_path, caplog):
    good, labels = make(), tmp_path / "labels.png"
    (tmp_path / "b.png").write_bytes(b"no picture")
    pairs = [(tmp_path / name, labels) for name in ("a.png", "b.png", "c.png")]
    records = load_labels("a", pairs, CODING, "the source", "do this")
    assert records[0] == good and [(r["height"], r["width"]) for r in records] == [(3, 4), (0, 0), (0, 0)]
    assert "1 of 3 files" in caplog.text and "do this" in caplog.text
    reasons = [EvaluationDataset(records)[i].reason for i in (1, 2)]
    assert "b.png is not a readable image" in reasons[0] and "c.png not found" in reasons[1]
    assert records[2]["image_id"] - records[0]["image_id"] == 2
    assert load_labels("b", pairs, CODING, "")[0]["image_id"] != records[0]["image_id"]
    with pytest.raises(FileNotFoundError, match=r"1 of 1 files that the source names .* do this"):
        load_labels("a", pairs[2:], CODING, "the source", "do this")
    with pytest.raises(FileNotFoundError, match=r"the source has no images\. do this"):
        load_labels("a", [], CODING, "the source", "do this")


def test_a_rotated_image_has_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.full((4, 2), 3, np.uint8)).save(tmp_path / "a.png")
    (record,) = load_labels("a", [(tmp_path / "a.jpg", tmp_path / "a.png")], CODING, tmp_path)
    assert (record["height"], record["width"]) == (4, 2)
    assert not isinstance(EvaluationDataset([record], class_names=["cat"], is_thing=[True])[0], Unreadable)
