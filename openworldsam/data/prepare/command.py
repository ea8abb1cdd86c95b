"""The command line of openworldsam prepare; each row of `PREPARATIONS` is a NAME."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from openworldsam.config_files import dataset_root
from openworldsam.utils.launch import say, user_errors

MAX_PROBLEMS = 20  # printed; a wrong folder of COCO has 118,287

_Options = dict[str, dict[str, Any]]
_WORKERS: _Options = {"--workers": {"type": int, "default": os.cpu_count() or 1, "metavar": "N", "help": "processes"}}
_NO_CHECK: _Options = {
    "--no-check": {"action": "store_true", "help": "other counts than the published ones are a warning"}
}


class Preparation(NamedTuple):
    """A NAME of the command.

    make: "module:function" in this folder, or "module:function:argument", imported when it is used. The function takes
    the argument, a Plan, and the options by name; it prints what it made and may return problems with the data.
    help: the files that it makes. files: sources and targets. options: flags beside --root, with `add_argument`'s
    arguments.
    """

    make: str
    help: str
    files: str
    options: _Options = _WORKERS | _NO_CHECK


PREPARATIONS = {
    "coco": Preparation(
        "coco:make_coco",
        "the filtered list of training images and the semantic PNGs, or check everything of COCO",
        "ROOT/coco/{annotations,panoptic_*2017}, ROOT/refcocog -> ROOT/coco/{annotations,panoptic_semseg_*2017}\n\n"
        "With --check: counts, missing files, and every panoptic PNG against its json.",
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
    ),
    "ade20k_847": Preparation(
        "labels:make_ade20k_847",
        "ADE20K-847's images and 16-bit label images, from the validation images of the 2021 release",
        "ROOT/ADE20K_2021_17_01/images/ADE/validation ->\n"
        "ROOT/ADE20K_2021_17_01/{images,annotations}_detectron2/validation",
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
    ),
    "sun_rgbd": Preparation(
        "sun_rgbd:make_sun_rgbd",
        "the test images and 37-class label images of SUN RGB-D, from the official archives; needs h5py",
        "ROOT/sun_rgbd/{SUNRGBD,SUNRGBDtoolbox} -> ROOT/sun_rgbd/{image,label37}/test",
    ),
    "scannet": Preparation(
        "panoptic:make_scannet",
        "ScanNet-20's panoptic json and PNGs, from the frames of the validation scenes",
        "ROOT/scannet/{scannetv2_val.txt,scannet_frames_25k/SCENE/{color,label,instance}} ->\n"
        "ROOT/scannet/{scannet_panoptic_val.json,scannet_panoptic_val/}\n\n"
        "With --raw-table, label/ (NYU40 ids) and instance/ are made first, from label-filt/ (raw ids) and\n"
        "instance-filt/, for frames that you extracted from the scans yourself; scannet_frames_25k has them.",
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
    ),
    "bdd10k": Preparation(
        "panoptic:make_bdd10k",
        "BDD10K's panoptic json and PNGs of the validation images, from the bitmasks",
        "ROOT/bdd100k/labels/pan_seg/bitmasks/val -> ROOT/bdd100k/{panoptic_val.json,panoptic_val/}",
    ),
}


def parse_args(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The options of a preparation by name, with its "name" and "root"."""
    epilog = "May be interrupted and repeated. datasets/README.md says what must be there first."
    form: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": epilog}
    about = "Make what a dataset's publisher does not offer for download."
    parser = argparse.ArgumentParser(prog="openworldsam prepare", description=about, **form)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, entry in PREPARATIONS.items():
        command = names.add_parser(name, help=entry.help, description=f"Make {entry.help}.\n\n{entry.files}", **form)
        command.add_argument(
            "--root", type=Path, default=dataset_root(), help="default: $DETECTRON2_DATASETS or datasets"
        )
        for flag, option in entry.options.items():
            command.add_argument(flag, **option)
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with 1 for problems with the data, 2 if it cannot be done, 130 for Ctrl-C."""
    options = parse_args(argv)
    from openworldsam.data.prepare.plan import Plan  # imports torch

    logging.basicConfig(format="%(levelname)s: %(message)s")
    module, function, *argument = PREPARATIONS[options.pop("name")].make.split(":")
    make = getattr(import_module(f"openworldsam.data.prepare.{module}"), function)
    plan = Plan(options.pop("root"), options.pop("workers", 1), not options.pop("no_check", False))
    with user_errors("stopped; the same command again goes on from here"):
        problems = make(*argument, plan, **options) or []
    for problem in problems[:MAX_PROBLEMS]:
        say(f"problem: {problem}", file=sys.stderr)
    if len(problems) > MAX_PROBLEMS:
        say(f"and {len(problems) - MAX_PROBLEMS} more problems", file=sys.stderr)
    if problems:
        sys.exit(1)
