"""Records of every format: recognised from Detectron2's dicts, small, and sent to workers."""

import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from openworldsam.data.datasets.catalog import load_records
from openworldsam.data.records import (
    InstanceRecord,
    LabelRecord,
    PanopticRecord,
    ReferringRecord,
    SceneRecord,
    as_record,
)
from openworldsam.data.records.labels import LabelCoding
from openworldsam.data.records.scenes import SceneReference
from openworldsam.data.shapes import World

SEGMENTATION = [[1, 1, 4, 1, 4, 4, 1, 4]]
FORMATS = [PanopticRecord, InstanceRecord, LabelRecord, ReferringRecord, SceneRecord]


@pytest.fixture
def entry(tmp_path):
    """Makes the dict of a format, of an image of 64 x 64 pixels."""
    ids = np.ones((64, 64), np.uint8)
    Image.fromarray(id2rgb(ids.astype(int))).save(tmp_path / "ids.png")
    Image.fromarray(ids).save(tmp_path / "labels.png")
    Image.fromarray(np.full((64, 64, 3), 7, np.uint8)).save(tmp_path / "a.png")
    ids_file, labels_file = str(tmp_path / "ids.png"), str(tmp_path / "labels.png")
    segment = {"id": 1, "category_id": 0, "iscrowd": 0}
    truths = {
        PanopticRecord: {"pan_seg_file_name": ids_file, "segments_info": [segment]},
        InstanceRecord: {"instances": [{**segment, "segmentation": SEGMENTATION}]},
        LabelRecord: {"sem_seg_file_name": labels_file, "coding": LabelCoding((1,), (True,), frozenset())},
        ReferringRecord: {"annotations": [{"sentences": ["it"], "segmentation": SEGMENTATION}]},
        SceneRecord: {"scene": SceneReference(World(size=64, thing_size=(8, 32)), 0, 0, "familiar", "shape")},
    }
    plain = {"file_name": str(tmp_path / "a.png"), "image_id": 3, "height": 64, "width": 64}
    return lambda format_: {**plain, **truths[format_]}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_dict_becomes_the_record_that_reads_it(entry, format_):
    record = as_record(entry(format_))
    assert type(record) is format_ and record == entry(format_) and as_record(record) is record
    again = pickle.loads(pickle.dumps(record))
    assert type(again) is format_ and again == record
    if format_ is ReferringRecord:
        (referent,) = again.read_referring()
        assert again.sentences() == [referent.sentences] == [("it",)] and referent.mask.sum() == 9
    else:
        ids, segments = again.read_panoptic()
        assert {s["id"] for s in segments} == set(np.unique(ids).tolist()) - {0} and ids.shape == (64, 64)
        assert [s["category_id"] for s in again.segments()] == [s["category_id"] for s in segments]


@pytest.mark.parametrize("format_", FORMATS)
def test_without_its_ground_truth_it_still_reads_its_image(entry, format_):
    record = as_record(entry(format_))
    small = pickle.loads(pickle.dumps(record.without_ground_truth()))
    np.testing.assert_array_equal(small.read_image(), record.read_image())
    kept = {"file_name", "image_id", "height", "width"}
    assert small.keys() == (kept | {"scene"} if format_ is SceneRecord else kept)
    assert record.files()[:1] == ([] if format_ is SceneRecord else [record["file_name"]])


def test_expressions_come_before_segments(entry):
    assert type(as_record({**entry(PanopticRecord), **entry(ReferringRecord)})) is ReferringRecord


def test_a_dict_of_no_known_format_is_an_error(entry):
    name, boxes = "test_records", entry(ReferringRecord)
    del boxes["annotations"][0]["sentences"]
    DatasetCatalog.register(name, lambda: [boxes])
    try:
        with pytest.raises(ValueError, match=r"needs .*pan_seg_file_name and segments_info.* got .*annotations"):
            load_records(name)
    finally:
        DatasetCatalog.remove(name)
    with pytest.raises(ValueError, match="needs file_name, image_id"):
        as_record({key: value for key, value in entry(PanopticRecord).items() if key != "image_id"})
