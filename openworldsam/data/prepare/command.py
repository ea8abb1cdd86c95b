"""The command openworldsam prepare; each row of `PREPARATIONS` is a NAME.

Its sources are looked for before torch is imported.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from openworldsam.utils.launch import say, user_errors

MAX_PROBLEMS = 20  # printed; a wrong folder of COCO has 118,287

_Options = dict[str, dict[str, Any]]
_Sources = Callable[[Path, Mapping[str, Any]], list[Path]]
_WORKERS: _Options = {"--workers": {"type": int, "default": os.cpu_count() or 1, "metavar": "N", "help": "processes"}}
_NO_CHECK: _Options = {
    "--no-check": {"action": "store_true", "help": "other counts than the published ones are a warning"}
}


class Preparation(NamedTuple):
    """A NAME of the command.

    make: "module:function" in this folder, or "module:function:argument", imported when it is used. The function takes
    the argument, a Plan, and the options by name; it prints what it made and may return problems with the data.
    help: the files that it makes. files: sources and targets. sources: what must be there, given the root and the
    options. options: flags beside --root, with `add_argument`'s arguments.
    """

    make: str
    help: str
    files: str
    sources: _Sources
    options: _Options = _WORKERS | _NO_CHECK


def _below(*names: str) -> _Sources:
    """Sources at fixed places below the root."""
    return lambda root, options: [root / name for name in names]


def _coco_sources(root: Path, options: Mapping[str, Any]) -> list[Path]:
    if options["check"]:  # which lists what is missing
        return []
    files = [root / f"coco/annotations/panoptic_{split}2017.json" for split in options["splits"]]
    if "train" in options["splits"] and not (root / FILTERED).exists():
        files += [options["refs"] or root / "refcocog/refs(umd).p", *filter(None, [options["karpathy"]])]
    return files


def _referring_sources(published: str) -> _Sources:
    def sources(root: Path, options: Mapping[str, Any]) -> list[Path]:
        refs = options["refs"] or root / published
        return [refs, options["instances"] or refs.parent / "instances.json"]

    return sources


FILTERED = "coco/annotations/panoptic_train2017_filtrefgumdval_filtvlp.json"
PREPARATIONS = {
    "coco": Preparation(
        "coco:make_coco",
        "the filtered list of training images and the semantic PNGs, or check everything of COCO",
        "ROOT/coco/{annotations,panoptic_*2017}, ROOT/refcocog -> ROOT/coco/{annotations,panoptic_semseg_*2017}\n\n"
        "With --check: counts, missing files, and every panoptic PNG against its json.",
        _coco_sources,
        {
            "--splits": {"nargs": "+", "choices": ["train", "val"], "default": ["train", "val"]},
            "--refs": {"type": Path, "metavar": "FILE", "help": "default: ROOT/refcocog/refs(umd).p"},
            "--karpathy": {"type": Path, "metavar": "FILE", "help": "dataset_coco.json, to remove its images too"},
            "--karpathy-splits": {
                "nargs": "+",
                "choices": ["val", "test"],
                "default": ["test"],
                "help": "default: test",
            },
            **_WORKERS,
            "--check": {"action": "store_true", "help": "make nothing, check what is there"},
        },
    ),
    **{
        name: Preparation(
            f"referring:make_referring:{name}",
            "the json files of all splits of a referring dataset, from the published ones",
            f"ROOT/{published} and instances.json beside it -> ROOT/coco/annotations/{prefix}_*.json\n\n"
            "Nothing is written if the counts are not the published ones, unless --no-check is given.",
            _referring_sources(published),
            {
                "--refs": {"type": Path, "metavar": "FILE", "help": f"default: ROOT/{published}"},
                "--instances": {"type": Path, "metavar": "FILE", "help": "default: instances.json beside it"},
                **_NO_CHECK,
            },
        )
        for name, published, prefix in (
            ("refcoco", "refcoco/refs(unc).p", "refcoco_unc"),
            ("refcoco_plus", "refcoco+/refs(unc).p", "refcoco_plus_unc"),
            ("refcocog", "refcocog/refs(umd).p", "refcocog_umd"),
            ("grefcoco", "grefcoco/grefs(unc).json", "grefcoco"),
        )
    },
    "ade20k_150": Preparation(
        "panoptic:make_ade20k",
        "ADE20K-150's panoptic and instance jsons, from the official annotations of its validation images",
        "ROOT/ADEChallengeData2016/{images,annotations,annotations_instance}/validation ->\n"
        "ROOT/ADEChallengeData2016/{ade20k_panoptic_val.json,ade20k_panoptic_val/,ade20k_instance_val.json}",
        _below("ADEChallengeData2016/images/validation"),
    ),
    "ade20k_847": Preparation(
        "labels:make_ade20k_847",
        "ADE20K-847's images and 16-bit label images, from the validation images of the 2021 release",
        "ROOT/ADE20K_2021_17_01/images/ADE/validation ->\n"
        "ROOT/ADE20K_2021_17_01/{images,annotations}_detectron2/validation",
        _below("ADE20K_2021_17_01/images/ADE/validation"),
        {
            **_WORKERS,
            **_NO_CHECK,
            "--short-side": {
                "type": int,
                "default": 512,
                "metavar": "PIXELS",
                "help": "scale larger images down to it, as is usual; 0: keep all sizes; default 512",
            },
        },
    ),
    "pascal_context": Preparation(
        "labels:make_pascal_context",
        "the label images of PASCAL Context-59 and Context-459, from the official LabelMaps",
        "ROOT/VOCdevkit/VOC2010/trainval/*.mat -> ROOT/VOCdevkit/VOC2010/annotations_detectron2/{pc59_val,pc459_val}",
        _below("VOCdevkit/VOC2010/ImageSets/Main/val.txt", "VOCdevkit/VOC2010/trainval"),
    ),
    "sun_rgbd": Preparation(
        "sun_rgbd:make_sun_rgbd",
        "the test images and 37-class label images of SUN RGB-D, from the official archives; needs h5py",
        "ROOT/sun_rgbd/{SUNRGBD,SUNRGBDtoolbox} -> ROOT/sun_rgbd/{image,label37}/test",
        _below("sun_rgbd/SUNRGBD", "sun_rgbd/SUNRGBDtoolbox"),
    ),
    "scannet": Preparation(
        "panoptic:make_scannet",
        "ScanNet-20's panoptic json and PNGs, from the frames of the validation scenes",
        "ROOT/scannet/{scannetv2_val.txt,scannet_frames_25k/SCENE/{color,label,instance}} ->\n"
        "ROOT/scannet/{scannet_panoptic_val.json,scannet_panoptic_val/}\n\n"
        "With --raw-table, label/ (NYU40 ids) and instance/ are made first, from label-filt/ (raw ids) and\n"
        "instance-filt/, for frames that you extracted from the scans yourself; scannet_frames_25k has them.",
        _below("scannet/scannetv2_val.txt", "scannet/scannet_frames_25k"),
        {
            **_WORKERS,
            **_NO_CHECK,
            "--raw-table": {"type": Path, "metavar": "FILE", "help": "scannetv2-labels.combined.tsv"},
        },
    ),
    "cityscapes": Preparation(
        "panoptic:make_cityscapes",
        "Cityscapes' panoptic jsons and PNGs of the validation and training images, from their instanceIds",
        "ROOT/cityscapes/{leftImg8bit,gtFine}/{val,train} ->\n"
        "ROOT/cityscapes/{panoptic_val.json,panoptic_val/,panoptic_train.json,panoptic_train/}\n\n"
        "The training images may be missing.",
        _below("cityscapes/leftImg8bit/val", "cityscapes/gtFine/val"),
    ),
    "bdd10k": Preparation(
        "panoptic:make_bdd10k",
        "BDD10K's panoptic json and PNGs of the validation images, from the bitmasks",
        "ROOT/bdd100k/labels/pan_seg/bitmasks/val -> ROOT/bdd100k/{panoptic_val.json,panoptic_val/}",
        _below("bdd100k/images/10k/val", "bdd100k/labels/pan_seg/bitmasks/val"),
    ),
}


def run(args: argparse.Namespace) -> None:
    """Run the command. Exits with 1 for problems with the data, 2 if it cannot be done, 130 for Ctrl-C."""
    options = {key: value for key, value in vars(args).items() if key not in ("command", "name", "root")}
    entry = PREPARATIONS[args.name]
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with user_errors("stopped; the same command again goes on from here"):
        if missing := [str(path) for path in entry.sources(args.root, options) if not path.exists()]:
            them = "it" if len(missing) == 1 else "them"
            raise FileNotFoundError(f"{' and '.join(missing)} not found. datasets/README.md says how to get {them}")
        from openworldsam.data.prepare.plan import Plan  # imports torch

        module, function, *argument = entry.make.split(":")
        make = getattr(import_module(f"openworldsam.data.prepare.{module}"), function)
        plan = Plan(args.root, options.pop("workers", 1), not options.pop("no_check", False))
        problems = make(*argument, plan, **options) or []
    for problem in problems[:MAX_PROBLEMS]:
        say(f"problem: {problem}", file=sys.stderr)
    if len(problems) > MAX_PROBLEMS:
        say(f"and {len(problems) - MAX_PROBLEMS} more problems", file=sys.stderr)
    if problems:
        sys.exit(1)
