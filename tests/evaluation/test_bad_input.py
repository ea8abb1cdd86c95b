"""Bad data among good: named in the results, never silently dropped, and the rest is scored."""

import json

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from openworldsam.data.datasets import register_datasets
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.summary import remarks

SIZE = (24, 16)
NAME = "reef_of_bad_pictures"


@pytest.fixture
def reef(tmp_path, tiny_cfg):
    """Six images with label images; only `good` and `empty`, which has no class, are valid."""
    labels = {name: np.zeros(SIZE[::-1], np.uint8) for name in ("good", "empty", "range", "size", "unreadable", "lost")}
    labels["good"][:, 8:] = 1
    labels["empty"][:] = 255
    labels["range"][3, 4] = 7
    labels["size"] = labels["size"][:-1]
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name, pixels in labels.items():
        Image.new("RGB", SIZE, (90, 120, 30)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(pixels).save(tmp_path / f"labels/{name}.png")
    (tmp_path / "images/unreadable.png").write_bytes(b"nothing")
    (tmp_path / "labels/lost.png").unlink()
    description = {"name": NAME, "images": "images", "labels": "labels", "classes": ["sand", "fish"], "ignore": 255}
    (tmp_path / "reef.yaml").write_text(yaml.safe_dump(description))
    tiny_cfg.merge_from_list(["DATASETS.OWN", [str(tmp_path / "reef.yaml")], "DATASETS.TEST", (NAME,)])
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    register_datasets(tiny_cfg)
    yield tiny_cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME, None)


@pytest.mark.parametrize("protocol", ["oracle", "global", "present+absent"])
def test_every_bad_image_is_named_and_the_others_are_scored(reef, build, protocol):
    reef.TEST.PROTOCOL = protocol
    results = evaluate(reef, build())
    content = results[NAME]
    reasons = {file.rsplit("/")[-1]: reason for file, reason in content["skipped"].items()}
    assert reasons.keys() == {"range.png", "size.png", "unreadable.png", "lost.png"}
    assert "range.png has the label 7 (1 such pixels), which is no class" in reasons["range.png"]
    assert "size.png is 24 x 15, its image is 24 x 16" in reasons["size.png"]
    assert "unreadable.png is not a readable image" in reasons["unreadable.png"]
    assert "lost.png not found" in reasons["lost.png"]
    ((empty, said),) = content["remarks"].items()
    assert empty.endswith("empty.png")
    assert said == "the ground truth is empty" + ("" if protocol == "global" else ", so there are no prompts")
    assert content["images"] == 2 and content["semantic"]["mIoU"] is not None
    assert [line.split(": ")[1].split(",")[0] for line in remarks(results)] == [
        "4 images not scored",
        "1 images to be noted",
    ]


def test_without_any_ground_truth_no_metric_is_available(reef, build, tmp_path):
    for name in ("good", "range", "size"):
        Image.new("L", SIZE, 255).save(tmp_path / f"labels/{name}.png")
    content = json.loads(json.dumps(evaluate(reef, build())[NAME]))
    assert content["images"] == len(content["remarks"]) == 4
    assert {content["semantic"][metric] for metric in ("mIoU", "mIoU_gt_or_pred", "fwIoU", "mACC", "pACC")} == {None}
    assert content["semantic"]["per_class"]["fish"] == {"IoU": None, "ACC": None}
