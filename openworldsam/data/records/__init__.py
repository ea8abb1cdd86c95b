"""Records: an image with its ground truth, one class for each format that ground truth comes in."""

from collections.abc import Mapping
from typing import Any

from openworldsam.data.records.instances import InstanceRecord
from openworldsam.data.records.labels import LabelRecord
from openworldsam.data.records.panoptic import PanopticRecord
from openworldsam.data.records.record import IMAGE_KEYS, Record, Referent, Segment
from openworldsam.data.records.referring import ReferringRecord
from openworldsam.data.records.scenes import SceneRecord

# a dict that fits several is of the first: one with expressions may have panoptic segments too
FORMATS: tuple[type[Record], ...] = (SceneRecord, ReferringRecord, LabelRecord, InstanceRecord, PanopticRecord)


def as_record(entry: Mapping[str, Any]) -> Record:
    """A Detectron2 dict, as a user's own function may register it, as the record whose `truth_keys` it has.

    Raises:
        ValueError: it is of none of the formats.
    """
    if isinstance(entry, Record):
        return entry
    for format_ in FORMATS:
        if format_.fits(entry):
            return format_(entry)
    known = "; or ".join(" and ".join(format_.truth_keys) for format_ in FORMATS)
    raise ValueError(
        f"a record of a dataset needs {', '.join(IMAGE_KEYS)}, and {known} (annotations with sentences); "
        f"got one with {', '.join(map(str, entry))}"
    )


__all__ = [
    "IMAGE_KEYS",
    "InstanceRecord",
    "LabelRecord",
    "PanopticRecord",
    "Record",
    "Referent",
    "ReferringRecord",
    "SceneRecord",
    "Segment",
    "as_record",
]
