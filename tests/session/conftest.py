"""A new user's folders: the files that the pages presuppose, and models and datasets of a few small numbers."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util
from safetensors.torch import save_file
from shell import Shell

from openworldsam import OpenWorldSAMPredictor
from openworldsam.checkpoint import save_component
from openworldsam.utils.panoptic_png import id2rgb
from openworldsam.utils.safe_yaml import read_yaml
from openworldsam.video.memory import SAM2Memory

ROOT = Path(__file__).parents[2]
SIZE = (32, 40)
"""Height and width of the images of datasets, in pixels."""
NAMES = ("000000000001", "000000000002")
IDS = np.ones(SIZE, np.uint8)
IDS[8:20, 10:30] = 2
LIMITS = {
    "DATALOADER": {"NUM_WORKERS": 0},
    "DATASETS": {"TRAIN_IMAGES": 8},
    "SOLVER": {"MAX_ITER": 2, "STEPS": []},
    "TEST": {"MAX_IMAGES": 2},
}
"""Settings of every config with which a page trains or evaluates."""
TINY = ("released", "coco/openworldsam", "coco/score_released", "presets/paper", "presets/improved")
"""Configs of the full size, which are made tiny."""


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_config(folder, name, sizes):
    """Write a config that is found before the one that ships with its name; a folder, as other names may lie below."""
    content = {"_BASE_": f"configs/{name}.yaml", **LIMITS, **sizes}
    short = name.removeprefix("presets/").removesuffix("/openworldsam")
    write_json(folder / short / "config.json", {"config": content, "crc32": {}})


def segmented(categories):
    """The images and annotations of a panoptic json: in each image `IDS`, its values of two categories."""
    infos = [
        {"id": number, "category_id": category, "area": int((number == IDS).sum()), "iscrowd": 0}
        for number, category in enumerate(categories, 1)
    ]
    return {
        "images": [image(number, f"{name}.jpg") for number, name in enumerate(NAMES, 1)],
        "annotations": [
            {"image_id": number, "file_name": f"{name}.png", "segments_info": infos}
            for number, name in enumerate(NAMES, 1)
        ],
    }


def image(number, name):
    return {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}


def square(number, image_id, category):
    """The object of value 2 of `IDS`, as an annotation of COCO's."""
    rle = mask_util.encode(np.asfortranarray(IDS == 2))
    mask = {"size": list(SIZE), "counts": rle["counts"].decode()}
    about = {"id": number, "image_id": image_id, "category_id": category, "iscrowd": 0}
    return {**about, "area": 240, "bbox": [10, 8, 20, 12], "segmentation": mask}


def make_datasets(root, pictures):
    """The benchmarks that the pages name, two images each, and predictions of their objects."""
    coco, ade, full = root / "coco", root / "ADEChallengeData2016", root / "ADE20K_2021_17_01"
    voc, cityscapes = root / "VOCdevkit/VOC2012", root / "cityscapes"
    places = ((coco / "train2017", coco / "panoptic_train2017"), (coco / "val2017", coco / "panoptic_val2017"))
    places += ((ade / "images/validation", ade / "ade20k_panoptic_val"),)
    for name, picture in zip(NAMES, pictures, strict=True):
        for images, panoptic in places:
            save(picture, images / f"{name}.jpg")
            save(id2rgb(IDS.astype(np.uint32)), panoptic / f"{name}.png")
        save(picture, voc / f"JPEGImages/{name}.jpg")
        save(IDS, voc / f"SegmentationClass/{name}.png")
        save(IDS, ade / f"annotations/validation/{name}.png")
        save(picture, full / f"images_detectron2/validation/{name}.jpg")
        save(IDS.astype(np.uint16), full / f"annotations_detectron2/validation/{name}.tif")
    (root / "VOCdevkit/VOC2010").mkdir()
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n".join(NAMES))
    for name in ("train2017_filtrefgumdval_filtvlp", "val2017"):
        write_json(coco / f"annotations/panoptic_{name}.json", segmented((149, 1)))
    write_json(ade / "ade20k_panoptic_val.json", segmented((1, 8)))
    images = segmented((149, 1))["images"]
    person, bed = {"id": 1, "name": "person"}, {"id": 8, "name": "bed"}
    objects = {"images": images, "annotations": [square(1, 1, 1)], "categories": [person]}
    write_json(coco / "annotations/instances_val2017.json", objects)
    referred = [{**square(1, 1, 1), "sentences": ["the person", "person on the bed"]}]
    write_json(coco / "annotations/refcocog_umd_val.json", {**objects, "annotations": referred})
    write_json(ade / "ade20k_instance_val.json", {**objects, "annotations": [square(1, 1, 8)], "categories": [bed]})
    instance_ids = np.where(IDS == 2, 26_000, 7).astype(np.uint16)  # a car on the road
    save(instance_ids, cityscapes / "gtFine/val/ulm/ulm_000000_000019_gtFine_instanceIds.png")
    write_json(cityscapes / "panoptic_val.json", {"images": [image("ulm_000000_000019", "ulm_000000_000019.png")]})


def make_predictions(folder):
    """The true objects as the predictions that the pages score, in place of an evaluation's."""
    for benchmark, found in (
        ("coco_2017_val_panoptic_openworldsam", square(1, 1, 1)),
        ("cityscapes_19_panoptic_val", square(1, "ulm_000000_000019", 26)),
    ):
        write_json(
            folder / "output/eval/predictions" / benchmark / "prediction/instances.json", [{**found, "score": 0.9}]
        )
    for name in NAMES:
        save(IDS, folder / f"xdecoder/ade20k_847_val/semantic/{name}.png")


@pytest.fixture(scope="session")
def weights(tiny_weights, tiny_opts, tmp_path_factory):
    """Folder with tiny weights under the names of the public ones, with SAM2's video modules."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(tiny_weights / "beit3.spm", folder)
    full = torch.load(tiny_weights / "model_final.pth", weights_only=True)
    model = OpenWorldSAMPredictor("tiny", opts=tiny_opts).model
    full["model"] |= {f"visual_model.{name}": tensor for name, tensor in SAM2Memory(model).video_state().items()}
    torch.save(full, folder / "model_final.pth")
    for name in ("sam2_hiera_large.pt", "beit3_large_patch16_224.pth"):
        (folder / name).symlink_to("model_final.pth")
    parts = ("visual_model.", "mm_extractor.", "text_hidden_fcs.")
    evf = {name: tensor.clone() for name, tensor in full["model"].items() if name.startswith(parts)}
    save_file(evf, folder / "evf-sam2-multitask.safetensors")
    return folder


@pytest.fixture(scope="session")
def belongings(weights, photograph, tmp_path_factory):
    """Folder with all that the pages presuppose."""
    folder = tmp_path_factory.mktemp("belongings")
    pictures = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    Image.open(photograph).resize((640, 480)).save(folder / "photo.jpg")
    for number, picture in enumerate(pictures):
        save(picture, folder / f"photos/{number}.jpg")
        for kind in ("images", "labels"):
            save(picture if kind == "images" else IDS, folder / f"reef/{kind}/{number}.png")
    (folder / "prompts.txt").write_text("a black dog\ngrass\n")
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, SIZE[::-1])
    for picture in pictures:
        video.write(picture)
    video.release()
    make_datasets(folder / "datasets", pictures)
    make_predictions(folder)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    shutil.copytree(weights, folder / "weights", symlinks=True)
    (folder / "model_final.pth").symlink_to("weights/model_final.pth")
    (folder / "DIR").symlink_to("datasets/coco")
    tiny = read_yaml(ROOT / "configs/tiny.yaml", "", "")
    sizes = {key: tiny["MODEL"][key] for key in ("DEVICE", "SAM2", "PROMPT_ENCODER", "ADAPTER", "INFERENCE")}
    del sizes["PROMPT_ENCODER"]["TOKENIZER"]
    model = OpenWorldSAMPredictor("shapes/refer").model
    path = folder / "output/shapes/sam2_video.safetensors"
    save_component(model, "sam2", path, "untrained memory", video=SAM2Memory(model).video_state())
    for name in TINY:
        make_config(folder, name, {"MODEL": sizes})
    del sizes["ADAPTER"]
    make_config(folder, "baselines/evf_sam2", {"MODEL": sizes})
    for name in ("shapes/openworldsam", "shapes/score", "shapes/paper"):
        make_config(folder, name, {})
    return folder


@pytest.fixture
def shell(belongings, processes, tmp_path):
    """A shell in a folder of its own with these belongings."""
    shutil.copytree(belongings, tmp_path / "home", symlinks=True)
    return Shell(tmp_path / "home", processes, tmp_path / "bin")
