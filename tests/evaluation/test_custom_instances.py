"""Custom instances: AP against the masks as given, and saved predictions with the dataset's own category ids."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_saved import IDENTITY, scored

from openworldsam.data.datasets import register_datasets
from openworldsam.data.datasets.catalog import load_records
from openworldsam.data.records.rle import decode_mask
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.saved import Saving
from openworldsam.inference.nms import mask_boxes

SIZE = (60, 80)
# their ids are in no order
CATEGORIES = [{"id": i, "name": name} for i, name in ((9, "plate"), (2, "cake"), (7, "spoon"), (5, "fork"))]


def rectangle(x, y, width, height):
    """Polygon of a rectangle, as COCO has it."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotations(image_id):
    """A cake lies on a plate, two forks of the same size lie crossed, and a spoon is hidden by two smaller objects."""
    objects = [
        *((9, rectangle(5, 5, 50, 40)), (2, rectangle(10, 10, 30, 20))),
        *((5, rectangle(60, 20, 4, 30)), (5, rectangle(50, 30, 30, 4))),
        *((7, rectangle(60, 2, 8, 4)), (2, rectangle(60, 2, 4, 4)), (9, rectangle(64, 2, 4, 4))),
    ]
    for index, (category, polygon) in enumerate(objects):
        x0, y0, *_, x1, y1 = (*polygon[0][:2], *polygon[0][4:6])
        box = [x0, y0, x1 - x0, y1 - y0]
        entry = {"category_id": category, "segmentation": polygon, "area": box[2] * box[3], "bbox": box}
        yield {"id": 10 * image_id + index, "image_id": image_id, "iscrowd": 0, **entry}


@pytest.fixture
def table(tmp_path, tiny_cfg):
    """Two images registered as "table"; returns the config and the json."""
    generator = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)]
    for image in images:
        pixels = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    content = {"images": images, "annotations": [*annotations(1), *annotations(2)], "categories": CATEGORIES}
    (tmp_path / "table.json").write_text(json.dumps(content))
    (tmp_path / "table.yaml").write_text(yaml.safe_dump({"name": "table", "images": ".", "instances": "table.json"}))
    opts = ["DATASETS.OWN", [str(tmp_path / "table.yaml")], "DATASETS.TEST", ("table",), "DATALOADER.NUM_WORKERS", 0]
    tiny_cfg.merge_from_list(opts)
    register_datasets(tiny_cfg)
    yield tiny_cfg, tmp_path / "table.json"
    DatasetCatalog.remove("table")
    MetadataCatalog.pop("table", None)


class Perfect(torch.nn.Module):
    """Predicts every object of the prompted classes, as its json has it."""

    def forward(self, batch, **_):
        records = {record["image_id"]: record for record in load_records("table")}
        return [{"instances": self.predict(records[x["image_id"]], x["class_ids"])} for x in batch]

    def predict(self, record, prompted):
        chosen = [i for i in record["instances"] if i["category_id"] in prompted]
        masks = torch.from_numpy(np.stack([decode_mask(i["segmentation"], SIZE) for i in chosen]))
        classes = torch.tensor([i["category_id"] for i in chosen])
        boxes = Boxes(mask_boxes(masks))
        return Instances(SIZE, pred_masks=masks, pred_boxes=boxes, scores=torch.ones(len(masks)), pred_classes=classes)


def pycocotools_ap(truth, predicted):
    """AP of masks and of boxes of two files."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        found = coco.loadRes(str(predicted))
        values = []
        for kind in ("segm", "bbox"):
            evaluation = COCOeval(coco, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            values.append(100 * evaluation.stats[0])
    return values


def test_a_perfect_prediction_gives_100_here_and_in_pycocotools(table, tmp_path):
    cfg, json_file = table
    saving = Saving(tmp_path / "saved", IDENTITY)
    content = evaluate(cfg, Perfect(), saving)["table"]["instance"]
    assert [content[name] for name in ("AP", "AP75", "AR100", "AP_box")] == [pytest.approx(100)] * 4
    folder = saving.folder / "table"
    for truth in (json_file, folder / "truth/instances.json"):
        assert pycocotools_ap(truth, folder / "prediction/instances.json") == [content["AP"], content["AP_box"]]
    assert scored(folder)["instance"]["AP"] == content["AP"]


def test_a_prediction_with_errors_gives_pycocotools_numbers(table, tmp_path):
    """Shifted masks; half of the json's areas and boxes say something else than the masks, as COCO's own do."""
    cfg, json_file = table
    content = json.loads(json_file.read_text())
    for entry in content["annotations"][::2]:
        entry.update(area=entry["area"] * 0.7, bbox=[entry["bbox"][0], entry["bbox"][1], 1.5, 2.5])
    for entry in content["annotations"][1::4]:
        del entry["bbox"]
    json_file.write_text(json.dumps(content))

    class Shifted(Perfect):
        def predict(self, record, prompted):
            found = super().predict(record, prompted)
            found.pred_masks = found.pred_masks.roll(2, 2)
            found.scores = torch.linspace(1, 0.5, len(found))
            return found

    saving = Saving(tmp_path / "saved", IDENTITY)
    result = evaluate(cfg, Shifted(), saving)["table"]["instance"]
    assert 0 < result["AP"] < 100
    predicted = saving.folder / "table/prediction/instances.json"
    assert pycocotools_ap(saving.folder / "table/truth/instances.json", predicted) == [result["AP"], result["AP_box"]]
    for entry in content["annotations"]:
        x0, y0, *_, x1, y1 = (*entry["segmentation"][0][:2], *entry["segmentation"][0][4:6])
        entry.setdefault("bbox", [x0, y0, x1 - x0, y1 - y0])
    json_file.write_text(json.dumps(content))
    assert pycocotools_ap(json_file, predicted) == [result["AP"], result["AP_box"]]
