"""The table of docs/ecosystem.md: every row is tried, and what it says of the packages that are installed."""

import inspect
from pathlib import Path
from types import GeneratorType

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools.coco import COCO
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import draw_segmentation_masks

from openworldsam import OpenWorldSAMPredictor
from openworldsam.config import load_config
from openworldsam.inference import TASKS

PAGE = Path(__file__).parents[2] / "docs/ecosystem.md"
PROMPTS = ["cat", "grass"]
ELSEWHERE = {
    "`dataset.apply_model(model)`": "tests/integrations/test_fiftyone.py, where FiftyOne is installed",
    "a machine-learning backend": "tests/integrations/test_label_studio.py, where its backend is installed",
}


def takes(function, *names):
    assert set(names) <= set(inspect.signature(function).parameters)


def tensor(image):
    return pil_to_tensor(Image.open(image))


def same(one, other):
    return np.array_equal(one.masks, other.masks) and np.allclose(one.scores, other.scores, atol=1e-5)


def called_with_one_or_several(predictor, image):
    result, results = predictor(image, PROMPTS), predictor([image, image], PROMPTS)
    assert len(results) == 2 and same(results[0], result)


def generator(predictor, image):
    results = predictor.predict_batch([image] * 3, PROMPTS, batch_size=4)
    assert isinstance(results, GeneratorType) and len(list(results)) == 3


def set_image_once(predictor, image):
    takes(SAM2ImagePredictor.set_image, "image")
    predictor.set_image(image)
    assert same(predictor.predict(PROMPTS), predictor(image, PROMPTS))
    assert len(predictor.click([(200, 100)], [1], box=[50, 50, 300, 250])) == 1


def set_image_batch(predictor, image):
    assert callable(SAM2ImagePredictor.set_image_batch)
    several = [predictor.encode(each) for each in (image, np.zeros((40, 50, 3), np.uint8))]
    assert [predictor.predict("cat", image=each).label_map.shape for each in several] == [(300, 451), (40, 50)]


def mask_input(predictor, image):
    takes(SAM2ImagePredictor.predict, "mask_input")
    predictor.set_image(image)
    result = predictor.predict("cat", score_threshold=0.0)
    refined = predictor.click([(200, 100)], [1], mask=result.logits[0])
    y, x = np.argwhere(result.masks[0])[0]
    picked = predictor.click([(x, y)], [1], among=result)
    assert len(refined) == len(picked) == 1 and picked.prompts == ("cat",)


def kinds_of_images(predictor, image):
    pixels = np.asarray(Image.open(image))
    kinds = [image, str(image), Image.open(image), pixels, cv2.imread(str(image))[..., ::-1], tensor(image)]
    kinds.append(tensor(image).float() / 255)
    first, *others = [predictor(each, PROMPTS) for each in kinds]
    assert all(same(first, other) for other in others)


def boxes_beside_a_text(predictor, image):
    box = [50, 50, 300, 250]
    for label, number in (("this", 1), ("not", 0)):
        named, numbered = (predictor.predict("cat", image=image, boxes=[box], box_labels=[x]) for x in (label, number))
        assert same(named, numbered)
    assert predictor.predict(PROMPTS, image=image, boxes=[box], box_labels=["within"]).prompts == ("cat", "grass")


def fields(predictor, image):
    result = predictor(image, PROMPTS)
    assert len(result) > 0
    for (mask, box, score, prompt), *same_of in zip(result, result.masks, result.boxes, result.scores, strict=True):
        assert prompt in result.prompts
        assert all(np.array_equal(*pair) for pair in zip((mask, box, score), same_of, strict=True))


def plot_save_show(predictor, image):
    result = predictor(image, PROMPTS)
    assert isinstance(result.plot(), Image.Image) and result.plot().mode == "RGB" and callable(result.show)
    takes(result.save, "path")


def speed(predictor, image):
    times = predictor.predict(PROMPTS, image=image, times=True).times
    assert times["image encoder"] > 0 and sum(times.values()) > 1  # milliseconds


def thresholds(predictor, image):
    few, many = (predictor(image, PROMPTS, score_threshold=t, nms_threshold=0.5) for t in (0.9, 0.4))
    assert len(few) < len(many) and many.scores.min() >= 0.4


def pretrained(predictor, image, folder):
    predictor.save_pretrained(folder)
    assert same(OpenWorldSAMPredictor.from_pretrained(folder, device="cpu")(image, PROMPTS), predictor(image, PROMPTS))
    assert OpenWorldSAMPredictor.from_pretrained("shapes").cfg.MODEL.SCORE_HEAD.HIDDEN
    assert load_config("released").PRESET == "released"


def tasks(predictor, image):
    assert set(TASKS) == {"panoptic", "instance", "semantic", "referring"}
    result = predictor(image, PROMPTS, task="panoptic")
    assert all(((result.label_map == n) == mask).all() for n, (mask, *_) in enumerate(result, start=1))


def supervision(predictor, image):
    sv = pytest.importorskip("supervision")
    detections = predictor(image, PROMPTS).to_supervision()
    assert isinstance(detections, sv.Detections)
    assert sv.MaskAnnotator().annotate(np.asarray(Image.open(image)).copy(), detections).shape == (300, 451, 3)


def torchvision(predictor, image):
    result = predictor(image, PROMPTS)
    drawn = draw_segmentation_masks(tensor(image), torch.from_numpy(result.masks))
    assert drawn.shape == (3, 300, 451)


def detectron2(predictor, image):
    assert isinstance(DefaultPredictor, type)
    instances = predictor(image, PROMPTS).to_detectron2()
    assert isinstance(instances, Instances)
    drawn = Visualizer(np.asarray(Image.open(image)), MetadataCatalog.get("habits")).draw_instance_predictions(
        instances
    )
    assert drawn.get_image().shape == (300, 451, 3)
    with torch.no_grad():
        (answer,) = predictor.model([{"image": tensor(image), "prompts": PROMPTS, "height": 300, "width": 451}])
    assert isinstance(answer["instances"], Instances)


def coco(predictor, image):
    dataset = COCO()
    dataset.dataset = predictor(image, PROMPTS).to_coco()
    dataset.createIndex()
    assert {category["name"] for category in dataset.cats.values()} == set(PROMPTS) and dataset.anns


ROWS = {
    "`model(image)`": called_with_one_or_several,
    "`stream=True`": generator,
    "`set_image` once": set_image_once,
    "`set_image_batch`": set_image_batch,
    "`mask_input=logits`": mask_input,
    "an image as path": kinds_of_images,
    "boxes beside a text": boxes_beside_a_text,
    "`for r in results`": fields,
    "`r.plot()`": plot_save_show,
    "`r.speed`": speed,
    "`conf=0.4`": thresholds,
    "`from_pretrained`": pretrained,
    "`post_process_panoptic": tasks,
    "`sv.Detections`": supervision,
    "`draw_segmentation_masks": torchvision,
    "`Instances`": detectron2,
    "COCO json": coco,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_true(row, predictor, photograph, tmp_path):
    arguments = [tmp_path / "saved"] if row == "`from_pretrained`" else []
    ROWS[row](predictor, photograph, *arguments)


def test_every_row_is_tried():
    rows = [line[2:] for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    tried = [*ROWS, *ELSEWHERE]
    assert len(rows) == len(tried) and all(any(row.startswith(start) for start in tried) for row in rows)
