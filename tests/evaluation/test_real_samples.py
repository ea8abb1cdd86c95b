"""tools/eval_net.py and tools/report.py as people run them, over a small DETECTRON2_DATASETS of real pictures.

The model is the tiny one with weights by rule: that figures come out is what is shown, not which.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
IMAGES = {
    "coco_2017_val_panoptic_openworldsam": 3,
    "ade20k_150_val": 3,
    "ade20k_847_val": 3,
    "pascal_voc_20_val": 4,
    "pascal_context_59_val": 4,
    "scannet_20_val": 5,
    "scannet_40_val": 5,
    "refcocog_umd_val": 5,
}


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def save(labels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_coco(data, root):
    sample = data / "coco_panoptic_sample"
    link(sample / "images", root / "coco/val2017")
    link(sample / "panoptic", root / "coco/panoptic_val2017")
    link(sample / "panoptic.json", root / "coco/annotations/panoptic_val2017.json")


def put_refcocog(data, root):
    listed = json.loads((data / "refcocog_sample/expressions.json").read_text())
    images = {e["image"]: {"id": e["image_id"], "height": e["height"], "width": e["width"]} for e in listed}
    content = {
        "images": [{"file_name": name, **image} for name, image in images.items()],
        "annotations": [{**e, "id": e["ann_id"], "sentences": [e["sentence"]]} for e in listed],
    }
    write(root / "coco/annotations/refcocog_umd_val.json", json.dumps(content))
    link(data / "refcocog_sample/images", root / "coco/train2017")


def put_ade20k(data, root):
    sample = data / "ade20k_150_sample"
    link(sample / "images", root / "ADEChallengeData2016/images/validation")
    link(sample / "annotations", root / "ADEChallengeData2016/annotations/validation")
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/street"
    for number, source in enumerate(sorted((data / "ade20k_full_sample").rglob("*_seg.png"))):
        link(source, folder / f"ADE_val_{number:08d}_seg.png")
        picture = source.with_name(source.name.replace("_seg.png", ".jpg"))
        link(picture, folder / f"ADE_val_{number:08d}.jpg")


def put_pascal(data, root):
    sample = data / "voc_context_nyu_sample"
    names = sorted(path.stem for path in (sample / "VOC").glob("*.jpg"))
    write(root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "\n".join(names))
    link(sample / "VOC", root / "VOCdevkit/VOC2012/JPEGImages")
    link(sample / "VOC", root / "VOCdevkit/VOC2012/SegmentationClass")
    names = sorted(path.stem for path in (sample / "Context").glob("*.jpg"))
    write(root / "VOCdevkit/VOC2010/ImageSets/Main/val.txt", "\n".join(names))
    link(sample / "Context", root / "VOCdevkit/VOC2010/JPEGImages")
    colours = np.load(sample / "cmap.npy").astype(int) @ (65_536, 256, 1)
    order = colours.argsort()
    for name in names:  # coloured, where `prepare.py pascal_context` writes numbers
        pixels = np.asarray(Image.open(sample / f"Context/{name}.png")).astype(int) @ (65_536, 256, 1)
        labels = order[np.searchsorted(colours[order], pixels)]
        target = root / f"VOCdevkit/VOC2010/annotations_detectron2/pc59_val/{name}.png"
        save(np.where(labels > 0, labels - 1, 255), target)


def put_scannet(data, root):
    """NYU40 pictures as frames of a scene; the sample counts classes from 0."""
    write(root / "scannet/scannetv2_val.txt", "scene0011_00\n")
    frames = root / "scannet/scannet_frames_25k/scene0011_00"
    for source in sorted((data / "voc_context_nyu_sample/NYU").glob("*_mask.png")):
        name, values = source.stem.removesuffix("_mask"), np.asarray(Image.open(source)).astype(int)
        save(np.where(values == 255, 0, values + 1), frames / f"label/{name}.png")
        (frames / "color").mkdir(exist_ok=True)
        Image.open(source.with_name(f"{name}.png")).convert("RGB").save(frames / f"color/{name}.jpg")


@pytest.fixture(scope="module")
def script(processes, shared, tmp_path_factory):
    """Runs a script of the project with the small datasets as DETECTRON2_DATASETS; returns what it did."""
    root = tmp_path_factory.mktemp("datasets")
    for put in (put_coco, put_refcocog, put_ade20k, put_pascal, put_scannet):
        put(shared / "data", root)

    def run(name, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DETECTRON2_DATASETS", str(root))
            patch.chdir(ROOT)
            return processes.script(ROOT / name, *arguments)

    assert run("datasets/prepare.py", "ade20k_847", "--workers", 1, "--no-check").status == 0
    return run


@pytest.fixture(scope="module")
def evaluate(script, tiny_weights):
    """Runs `openworldsam evaluate` over all of them into a folder; what it printed."""

    def run(output, *more):
        opts = ["MODEL.WEIGHTS", tiny_weights / "model_final.pth", "MODEL.DEVICE", "cpu"]
        opts += ["MODEL.PROMPT_ENCODER.TOKENIZER", tiny_weights / "beit3.spm", "DATALOADER.NUM_WORKERS", 0]
        arguments = ["--config-file", "configs/tiny.yaml", "--benchmarks", *IMAGES, "sun_rgbd_37_val"]
        return script("tools/eval_net.py", *arguments, "--output", output, *more, *opts)

    return run


@pytest.fixture(scope="module")
def evaluated(evaluate, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, evaluate(folder, "--save-predictions")


def test_the_table_has_every_benchmark_and_says_what_is_missing_and_that_a_tiny_model_is_not_the_papers(evaluated):
    folder, done = evaluated
    assert done.status == 2  # SUN RGB-D was asked for and is not there
    assert done.stderr.splitlines()[-1].startswith("error: sun_rgbd_37_val is left out: ")
    results = json.loads((folder / "results.json").read_text())
    assert {name: content["images"] for name, content in results["benchmarks"].items()} == IMAGES
    assert not any(content["skipped"] or content["remarks"] for content in results["benchmarks"].values())
    assert "openworldsam prepare sun_rgbd" in results["missing"]["sun_rgbd_37_val"]
    assert results["paper"]["row"] is None
    *lines, reason, _ = done.stdout.splitlines()
    assert reason == f"not compared with the paper: {results['paper']['reason']}"
    rows = {tuple(line.split()[i] for i in (0, 3, 4)): line.split()[5:] for line in lines[2:]}
    for name, content in results["benchmarks"].items():
        task, metric = ("referring", "cIoU") if name.startswith("refcocog") else ("semantic", "mIoU")
        assert rows[name, task, metric] == [f"{content[task][metric]:.2f}"], name
    assert rows["coco_2017_val_panoptic_openworldsam", "panoptic", "PQ"]


def test_a_report_of_two_runs_side_by_side(evaluated, evaluate, script, tmp_path):
    one, _ = evaluated
    evaluate(tmp_path / "two", "--save-predictions", "MODEL.INFERENCE.TWO_STAGE", "True", "TEST.MAX_IMAGES", 1)
    done = script("tools/report.py", "--runs", one, tmp_path / "two", "--images", 1, "--output", tmp_path / "a.html")
    assert (done.status, done.stderr) == (0, "")
    html = (tmp_path / "a.html").read_text()
    tasks = dict.fromkeys(IMAGES, ("semantic",)) | {"refcocog_umd_val": ("referring",)}
    tasks["coco_2017_val_panoptic_openworldsam"] = ("panoptic", "instance", "semantic")
    pictures = [f"<h3>Pictures: {name}, {task}</h3>" for name, own in tasks.items() for task in own]
    assert all(heading in html for heading in pictures) and html.count("<h3>Pictures: ") == len(pictures)
    assert html.count("data:image/webp") == 4 * len(pictures)
    assert html.count("<h3>Confusions of the worst classes: ") == 2 * (len(IMAGES) - 1)
    assert "sun_rgbd_37_val" in html and "rule-made, not trained" in html
