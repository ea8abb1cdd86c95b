"""Merged accumulators equal one accumulator, in any order, within a process and across two."""

import json
import random

import numpy as np
import pytest
from detectron2.utils import comm

from openworldsam.data.records.rle import encode_mask
from openworldsam.evaluation.metrics import (
    CityscapesAP,
    ConceptScores,
    GeneralizedReferringScores,
    InstanceAP,
    PanopticQuality,
    ReferringScores,
    SemanticScores,
    merged,
)
from openworldsam.utils.files import named

IMAGES = 24


def accumulators():
    return {
        "panoptic": PanopticQuality({1: True, 2: True, 3: False}),
        "semantic": SemanticScores(3),
        "segm": InstanceAP([1, 2, 3]),
        "bbox": InstanceAP([1, 2, 3], "bbox"),
        "cityscapes": CityscapesAP([1, 2, 3]),
        "referring": ReferringScores(),
        "generalized": GeneralizedReferringScores(),
        "concept": ConceptScores(),
    }


def filled(images):
    """Accumulators updated with images of three segments; the content depends on the image number alone."""
    result = accumulators()
    for image in images:
        generator = np.random.default_rng(image)
        truth = np.sort(generator.integers(1, 4, (16, 16)), axis=1)
        predicted = np.where(generator.random((16, 16)) < 0.8, truth, np.roll(truth, 2, axis=1))
        segments = [(i, i) for i in np.unique(predicted).tolist()]
        result["panoptic"].update(predicted, segments, truth, [(i, i, 0) for i in np.unique(truth).tolist()])
        result["semantic"].update(predicted - 1, truth - 1)
        result["referring"].update(predicted == 1, truth == 1)
        result["generalized"].update((predicted == 1) & (image % 3 > 0), (truth == 1) & (image % 2 > 0))
        boxes = generator.integers(1, 8, (2, 3, 4)).tolist()
        for name in ("segm", "bbox"):
            instances = [[instance(i + 1, b) for i, b in enumerate(kind)] for kind in boxes]
            result[name].update(image, (16, 16), *instances)
        result["concept"].update((16, 16), (1, 2, 3), *instances)
        masks = [{**each, "segmentation": encode_mask(predicted == each["category_id"])} for each in instances[0]]
        result["cityscapes"].update(masks, truth, [(i, i, 0) for i in np.unique(truth).tolist()])
    return result


def instance(category, corners):
    x, y, w, h = corners
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {"category_id": category, "score": x / 8, "bbox": corners, "area": w * h, "segmentation": polygon}


def computed(accumulators):
    return {name: accumulator.compute() for name, accumulator in accumulators.items()}


def test_merged_parts_equal_the_whole_in_any_order():
    order = random.Random(0).sample(range(IMAGES), IMAGES)
    parts = [filled(order[:5]), filled(order[5:]), filled([])]
    for name, whole in parts[0].items():
        for part in parts[1:]:
            whole.merge(part[name])
    assert computed(parts[0]) == computed(filled(range(IMAGES)))  # bit-exact


def test_merged_on_one_process_returns_its_argument():
    accumulator = filled([0])["panoptic"]
    assert merged(accumulator) is accumulator


def merged_shares():
    """What this process has of the accumulators of all, as json."""
    share = filled(range(comm.get_rank(), IMAGES, comm.get_world_size()))
    gathered = {name: merged(accumulator) for name, accumulator in share.items()}
    return json.dumps(computed(gathered) if comm.is_main_process() else gathered)


def test_two_processes_equal_one(processes):
    two, nothing = map(json.loads, processes.values(merged_shares, processes=2))
    assert two == json.loads(json.dumps(computed(filled(range(IMAGES))))) and set(nothing.values()) == {None}


def test_named_prefixes_the_error():
    with pytest.raises(ValueError, match=r"a\.png: too large"), named("a.png"):
        raise ValueError("too large")
