"""Makes small good inputs of every command: pictures, datasets, weights, and what the commands themselves write."""

import json
import pickle
import shutil

import cv2
import numpy as np
import torch
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util
from safetensors import safe_open
from safetensors.torch import save_file
from sandbox import run_task

from openworldsam import cli
from openworldsam.checkpoint import convert_released
from openworldsam.config import load_config
from openworldsam.engine.checks import check_training
from openworldsam.engine.trainer import Trainer
from openworldsam.engine.training_state import save_state
from openworldsam.predictor import OpenWorldSAMPredictor

annotate = cli.command("annotate")
cache_features = cli.command("cache")
evaluate = cli.command("evaluate")
calibrate = cli.command("calibrate")

SIZE = (16, 20)
"""Height and width of the dataset's images, in pixels."""
CATEGORIES = [{"id": 3, "name": "sand", "isthing": 0}, {"id": 8, "name": "fish", "isthing": 1}]
SQUARE = [5, 4, 10, 4, 10, 8, 5, 8]
CONFIG = """\
VERSION: 2
_BASE_: {root}/configs/tiny.yaml
MODEL:
  WEIGHTS: {folder}/model_final.pth
  PROMPT_ENCODER:
    TOKENIZER: {folder}/beit3.spm
DATALOADER:
  NUM_WORKERS: 0
DATASETS:
  OWN: [{folder}/reef/labels.yaml]
  TRAIN: [reef]
  TEST: [reef]
SOLVER:
  IMS_PER_BATCH: 2
  MAX_ITER: 2
  STEPS: []
OUTPUT_DIR: {folder}/trained
"""


def contents(folder):
    """The content of every file below a folder, and the target of every link, by path; without logs and locks."""
    found = {}
    for path in folder.rglob("*"):
        if path.name == "log.txt" or path.name.endswith(".lock"):
            continue
        found[path] = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def rle(mask):
    code = mask_util.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def make_pictures(folder):
    """A picture in every documented format, a folder of three, a clip as frames and as a video, and prompts."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    for suffix in ("png", "jpg", "tif", "webp", "bmp", "gif"):
        picture.save(folder / f"cat.{suffix}")
    picture.save(folder / "cat_lzw.tif", compression="tiff_lzw")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a cat"
    picture.save(folder / "cat_exif.jpg", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 9).save(folder / "label.tif")
    picture.quantize(4).save(folder / "palette.png")
    for name in ("pictures/a.png", "pictures/b.jpg", "pictures/more/c.png", "clip/0.png", "clip/1.png", "clip/10.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (40, 30))
    for _ in range(3):
        video.write(pixels)
    video.release()
    (folder / "prompts.txt").write_text("fish\nstuff: sand\n")


def make_dataset(folder):
    """Two images, sand with a fish in it, annotated in every way, and predictions of them."""
    labels = np.zeros(SIZE, np.uint8)
    labels[4:8, 5:10], labels[0] = 1, 255
    segments = [{"id": i, "category_id": c, "area": a, "iscrowd": 0} for i, c, a in ((1, 3, 300), (2, 8, 20))]
    generator, images = np.random.default_rng(0), []
    for number, name in enumerate(("a", "b"), start=1):
        for kind in ("images", "labels", "panoptic", "coco"):
            (folder / kind).mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / f"images/{name}.jpg")
        Image.fromarray(labels).save(folder / f"labels/{name}.png")
        Image.fromarray(id2rgb((labels.astype(int) + 1) % 256)).save(folder / f"panoptic/{name}.png")
        shutil.copy(folder / f"images/{name}.jpg", folder / f"coco/{number:012d}.jpg")
        images.append({"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
    listing = {"images": images, "categories": CATEGORIES}
    panoptic = [{"image_id": i, "file_name": f"{n}.png", "segments_info": segments} for i, n in ((1, "a"), (2, "b"))]
    mask = {"image_id": 1, "category_id": 8, "bbox": [5, 4, 5, 4], "area": 20, "iscrowd": 0}
    coded = rle(labels == 1)
    polygons, runs = (
        {"id": 1, **mask, "segmentation": [SQUARE]},
        {**mask, "id": 2, "image_id": 2, "segmentation": coded},
    )
    sentences = [{**each, "sentences": ["a fish", "the only fish"]} for each in (polygons, runs)]
    write_json(folder / "panoptic.json", {**listing, "annotations": panoptic})
    write_json(folder / "instances.json", {**listing, "annotations": [polygons, runs]})
    write_json(folder / "referring.json", {**listing, "annotations": sentences})
    write_json(folder / "found.json", [{**mask, "segmentation": coded, "score": 0.5}])
    write_json(folder / "referred.json", [{"id": 1, "segmentation": coded}, {"id": 2, "segmentation": coded}])
    (folder / "classes.txt").write_text("sand\nfish\n")
    write_json(folder / "classes.json", ["sand", "fish"])
    shutil.copy(folder / "panoptic.json", folder / "truth.json")
    shutil.copytree(folder / "labels", folder / "truth")
    own = {"labels": {"labels": "labels", "classes": ["sand", "fish"], "ignore": 255}}
    own |= {"panoptic": {"panoptic": "panoptic.json", "panoptic_images": "panoptic"}}
    own |= {"instances": {"instances": "instances.json"}}
    for kind, content in own.items():  # JSON is YAML
        (folder / f"{kind}.yaml").write_text(json.dumps({"name": "reef", "images": "images", **content}))
    reference = {"ann_id": 1, "image_id": 1, "split": "val", "sentences": [{"raw": "a fish", "sent": "a fish"}]}
    (folder / "refs.p").write_bytes(pickle.dumps([reference], protocol=2))


def make_checkpoints(folder):
    """The adapter in the formats of torch, and in shards."""
    with safe_open(folder / "split/adapter.safetensors", framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    few = dict([*state.items()][:4])
    torch.save({"model": few, "iteration": 3}, folder / "small.pth")
    torch.save({"model": few, "iteration": 3}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "shards").mkdir()
    save_file(few, folder / "shards/one.safetensors")
    index = {"weight_map": dict.fromkeys(few, "one.safetensors")}
    write_json(folder / "shards/model.safetensors.index.json", index)


def make_world(folder, root, weights):
    """Fill a folder with all inputs, those of the commands included."""
    for name in ("model_final.pth", "beit3.spm"):
        (folder / name).write_bytes((weights / name).read_bytes())
    (folder / "tiny.yaml").write_text(CONFIG.format(root=root, folder=folder))
    make_pictures(folder)
    (folder / "reef").mkdir()
    make_dataset(folder / "reef")
    np.savez(folder / "golden.npz", a=np.zeros(3, np.float32), b=np.arange(4))
    convert_released(folder / "model_final.pth", folder / "split")
    make_checkpoints(folder)
    tiny = ["--config-file", str(folder / "tiny.yaml"), "--output"]

    def make_results():
        OpenWorldSAMPredictor(folder / "tiny.yaml").save_pretrained(folder / "pretrained")
        cache_features([*tiny, str(folder / "cache"), "--image-features", "all"])
        evaluate([*tiny, str(folder / "evaluated"), "--save-predictions"])
        calibrate([*tiny, str(folder / "evaluated"), "DATASETS.HELD_OUT", "['reef']"])
        check_training(cfg := load_config(folder / "tiny.yaml"))
        trainer = Trainer(cfg)  # a step would need a process that has never had one
        trainer.iter = 0
        save_state(trainer)
        asked = ["--input", f"{folder}/pictures", "--prompts", f"{folder}/prompts.txt", "--task", "panoptic"]
        annotate(["--config-file", f"{folder}/tiny.yaml", *asked, "--output", f"{folder}/annotated"])

    ended = run_task(folder, make_results, seconds=60)
    assert ended.status == 0, ended
    saved = folder / "evaluated/predictions/reef"
    shutil.copy(saved / "run.json", saved / "identity.json")
