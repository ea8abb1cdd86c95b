"""Records: images with their ground truth, one class per ground-truth format."""

from collections.abc import Mapping
from typing import Any

from openworldsam.data.records.instances import InstanceRecord
from openworldsam.data.records.labels import LabelRecord
from openworldsam.data.records.panoptic import PanopticRecord
from openworldsam.data.records.record import IMAGE_KEYS, Record
from openworldsam.data.records.referring import ReferringRecord
from openworldsam.data.records.scenes import SceneRecord

# the first that fits: a dict with expressions may also have panoptic segments
FORMATS: tuple[type[Record], ...] = (SceneRecord, ReferringRecord, LabelRecord, InstanceRecord, PanopticRecord)


def as_record(entry: Mapping[str, Any]) -> Record:
    """Convert a plain Detectron2 dict, which a user's function may return, to the record of its format.

    Raises:
        ValueError: it is of no known format.
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
