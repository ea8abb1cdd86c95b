"""Every function that reads a file from outside, with a good file for it."""

from typing import Any, NamedTuple

import torch
from detectron2.data import DatasetCatalog

from openworldsam import cli
from openworldsam.annotate.coco import write_coco
from openworldsam.annotate.cvat import write_cvat
from openworldsam.annotate.label_studio import write_label_studio
from openworldsam.annotate.prompts import Prompts, read_prompts
from openworldsam.annotate.results import FolderResults
from openworldsam.app.uploads import read_upload
from openworldsam.checkpoint import load_weights, read_weights
from openworldsam.config import load_config
from openworldsam.data.check import read_record
from openworldsam.data.datasets import custom
from openworldsam.data.feature_cache import FeatureCache
from openworldsam.data.prepare.referring import convert, read_refs
from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.coco_json import read_categories
from openworldsam.data.records.labels import read_labels
from openworldsam.data.records.referring import load_referring
from openworldsam.evaluation.saved import SavedPredictions, claim_folder
from openworldsam.evaluation.score import (
    read_class_names,
    score_concept,
    score_instance,
    score_panoptic,
    score_referring,
    score_semantic,
)
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import BEiT3Tokenizer
from openworldsam.parity import read_golden
from openworldsam.report.command import build_report
from openworldsam.report.evaluations import read_evaluations
from openworldsam.utils.files import read_json
from openworldsam.video.frames import open_clip

train = cli.command("train")


class Reader(NamedTuple):
    """A function of the path of a file, and the good file, by a pattern of its path in the world.

    text: the file is one. share: of the number of files, for functions that take long.
    """

    read: Any
    file: str
    text: bool = False
    share: float = 1


def read_dataset(description):
    """Register a custom dataset and read all of it."""
    DatasetCatalog.pop("reef", None)
    for record in DatasetCatalog.get(custom.register(description)):
        read_record(record)


def described(kind):
    return lambda path: read_dataset(path.with_name(f"{kind}.yaml"))


def read_expressions(path):
    for record in load_referring(path, path.with_name("coco")):
        record.read_referring()


def convert_refs(path):
    convert(read_refs(path), read_json(path.with_name("instances.json")), "val")


def read_cache(path):
    cache = FeatureCache(path.parent)
    cache.verify()
    for image_id in cache._images:
        cache.missing(image_id, ["sand"], "a.jpg")


def load_adapter(path):
    """Load a tiny model with the adapter at a path."""
    cfg = load_config(path.parents[1] / "tiny.yaml")
    cfg.MODEL.WEIGHTS = str(path)
    for key, name in ((cfg.MODEL.SAM2, "sam2"), (cfg.MODEL.PROMPT_ENCODER, "beit3")):
        key.WEIGHTS = str(path.with_name(f"{name}.safetensors"))
    torch.manual_seed(0)
    load_weights(OpenWorldSAM(cfg), cfg)


def read_saved(path):
    saved = SavedPredictions.written(next(folder for folder in path.parents if folder.name == "reef"))
    for image_id in saved.image_ids():
        saved.image(image_id)
        saved.answers(image_id)


def read_annotated(path):
    results = FolderResults(path.parents[1], ["a.png"], Prompts(("fish", "sand"), (True, False)), "panoptic")
    results.is_done("a.png", (0, 0))
    write_coco(results, {})
    write_cvat(results)
    write_label_studio(results, path.parent)


def resume(path):
    """Resume a training of the dataset from a state."""
    words = ["--config-file", str(path.parents[1] / "tiny.yaml"), "--resume", "OUTPUT_DIR", str(path.parent)]
    train([*words, "SOLVER.MAX_ITER", "1"])


def scored(score, *before):
    """Score a file against the ground truth beside it."""
    return lambda path: score(*(path.with_name(name) for name in before), path)


FIRST = "305521999000000"
SAVED = "evaluated/predictions/reef"
READERS = {
    "config": Reader(load_config, "tiny.yaml", text=True),
    "description": Reader(read_dataset, "reef/labels.yaml", text=True),
    "panoptic json": Reader(described("panoptic"), "reef/panoptic.json", text=True),
    "instance json": Reader(described("instances"), "reef/instances.json", text=True),
    "classes of a json": Reader(read_categories, "reef/panoptic.json", text=True),
    "referring json": Reader(read_expressions, "reef/referring.json", text=True),
    "references": Reader(convert_refs, "reef/refs.p"),
    "instances of references": Reader(
        lambda path: convert(read_refs(path.with_name("refs.p")), read_json(path), "val"),
        "reef/instances.json",
        text=True,
    ),
    "results of instances": Reader(scored(score_instance, "instances.json"), "reef/found.json", text=True),
    "truth of instances": Reader(
        lambda path: score_instance(path, path.with_name("found.json")), "reef/instances.json", text=True
    ),
    "results of phrases": Reader(
        lambda path: score_concept([path.with_name("instances.json")], path), "reef/found.json", text=True
    ),
    "results of expressions": Reader(scored(score_referring, "referring.json"), "reef/referred.json", text=True),
    "truth of expressions": Reader(
        lambda path: score_referring(path, path.with_name("referred.json")), "reef/referring.json", text=True
    ),
    "panoptic results": Reader(
        lambda path: score_panoptic(
            *(path.with_name("truth.json"), path.with_name("panoptic"), path, path.with_name("panoptic"))
        ),
        "reef/panoptic.json",
        text=True,
    ),
    "panoptic truth": Reader(
        lambda path: score_panoptic(
            *(path, path.with_name("panoptic"), path.with_name("truth.json"), path.with_name("panoptic"))
        ),
        "reef/panoptic.json",
        text=True,
    ),
    "semantic results": Reader(
        lambda path: score_semantic(
            path.parents[1] / "truth", path.parents[1] / "labels", path.parents[1] / "classes.txt"
        ),
        "reef/labels/a.png",
    ),
    "class names": Reader(read_class_names, "reef/classes.txt", text=True),
    "class names in json": Reader(read_class_names, "reef/classes.json", text=True),
    "PNG": Reader(read_image, "cat.png"),
    "JPEG": Reader(read_image, "cat.jpg"),
    "TIFF": Reader(read_image, "cat.tif"),
    "compressed TIFF": Reader(read_image, "cat_lzw.tif"),
    "WebP": Reader(read_image, "cat.webp"),
    "BMP": Reader(read_image, "cat.bmp"),
    "GIF": Reader(read_image, "cat.gif"),
    "JPEG with EXIF": Reader(read_image, "cat_exif.jpg"),
    "upload": Reader(read_upload, "cat.png"),
    "label PNG": Reader(read_labels, "reef/labels/a.png"),
    "label TIFF": Reader(read_labels, "label.tif"),
    "label palette": Reader(read_labels, "palette.png"),
    "clip": Reader(lambda path: list(open_clip(path).frames), "clip.mp4"),
    "checkpoint": Reader(read_weights, "small.pth"),
    "checkpoint before zip": Reader(read_weights, "legacy.pth"),
    "safetensors": Reader(read_weights, "split/adapter.safetensors"),
    "adapter": Reader(load_adapter, "split/adapter.safetensors", share=0.2),
    "shard index": Reader(read_weights, "shards/model.safetensors.index.json", text=True),
    "tokenizer": Reader(lambda path: BEiT3Tokenizer(path)(["a cat", "the sand"]), "beit3.spm"),
    "prompts": Reader(read_prompts, "prompts.txt", text=True),
    "golden file": Reader(read_golden, "golden.npz"),
    "cache header": Reader(read_cache, "cache/header.json", text=True),
    "cache index": Reader(read_cache, "cache/shard-*.json", text=True),
    "cache shard": Reader(read_cache, "cache/shard-*.safetensors"),
    "results.json": Reader(
        lambda path: build_report(read_evaluations([path.parent]), images=0),
        "evaluated/results.json",
        text=True,
        share=0.2,
    ),
    "calibration.json": Reader(
        lambda path: build_report(read_evaluations([path.parent]), images=0),
        "evaluated/calibration.json",
        text=True,
        share=0.2,
    ),
    "saved prediction": Reader(read_saved, f"{SAVED}/images/{FIRST}.json", text=True),
    "saved labels": Reader(read_saved, f"{SAVED}/prediction/semantic/{FIRST}.png"),
    "identity of predictions": Reader(
        lambda path: claim_folder(path.parent, read_json(path.with_name("identity.json"))),
        f"{SAVED}/run.json",
        text=True,
    ),
    "annotated image": Reader(read_annotated, "annotated/records/a.json", text=True),
    "pretrained config": Reader(lambda path: load_config(path.parent), "pretrained/config.json", text=True),
    "training state": Reader(resume, "trained/state_0000001.pth", share=0.2),
}
