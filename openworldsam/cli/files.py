"""The subcommands about files and the machine: their options."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from openworldsam.cli.options import Command, Parser, add_config, add_output, given_path
from openworldsam.config_files import dataset_root, weights_folder

SCORED = ("panoptic", "instance", "cityscapes", "concept", "semantic", "referring", "generalized_referring")


def _score(parser: Parser) -> None:
    add = parser.add_argument
    add("--task", required=True, choices=SCORED)
    several = "ground truth: the json; concept: one for each annotator"
    add("--gt", type=Path, nargs="+", default=[], metavar="FILE", help=several)
    add("--gt-dir", type=Path, metavar="DIR", help="its PNGs; by default beside a panoptic json")
    add("--pred", type=Path, metavar="FILE", help="predictions: the json")
    add("--pred-dir", type=Path, metavar="DIR", help="their PNGs; by default beside a panoptic json")
    add("--iou-type", choices=("segm", "bbox"), default="segm", help="instance: masks (default) or boxes")
    add("--classes", type=Path, metavar="FILE", help="semantic: a class name per line, or a json")
    void = "semantic: label not to count; default 255, or 65535 from 256 classes on"
    add("--ignore", type=int, metavar="V", help=void)
    add_output(parser, "the scores", "OUT.json")


_FORMATS = """\
The files of each task are the standard ones:

panoptic: COCO panoptic jsons and folders of PNGs, by default those beside the jsons without their ".json". An image
    without a prediction is an error, as in panopticapi.
instance: a COCO json of annotations and a list of COCO results, with masks or boxes. An image without results has no
    detections, as in pycocotools.
concept: the same files; every image is asked for some phrases, which may be absent. These are the categories of its
    annotations and its neg_category_ids, less its not_exhaustive_category_ids, as in LVIS; without neg_category_ids all
    categories, so that files of SA-Co, which have one category and an image for every phrase, are read as they are.
    Several files of annotations are those of several annotators. As in SA-Co, an image that is not
    "is_instance_exhaustive" in one of them is left out.
cityscapes: Cityscapes' own AP. A folder of its *_gtFine_instanceIds.png (--gt-dir), and either a list of COCO results
    with masks, whose categories are those of labelIds and whose image ids are names such as ulm_000000_000019 or those
    of a json (--gt); or a folder with a text file for each image (--pred-dir), as cityscapesScripts reads it.
semantic: folders of PNGs or TIFFs of the same names, where a pixel is the number of its class from 0. One without a
    prediction is an error; a predicted label that is no class is a pixel without a prediction.
referring: a COCO json whose annotations are expressions, and one, or a list of results, that has a mask under the "id"
    of each. An expression without a prediction counts as an empty mask.
generalized_referring: the same files with gRefCOCO's metrics. Where an expression refers to nothing, or is said to, is
    an empty mask, "no_target": true, or no prediction.

The output has the metrics by name, 0 to 100 (IL_MCC: -1 to 1), null where there was nothing to measure; "per_class",
the same by class name; and "without_prediction", the ids of images or expressions that had none."""


def _verify(parser: Parser) -> None:
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="COCO panoptic images, to compare the fusions on")
    add("--output", type=given_path, default=Path("output/verify"), metavar="DIR", help="gets verify.md, verify.json")
    add_config(parser, "released")


def _check_verify(parser: Parser, args: argparse.Namespace) -> None:
    if not args.weights:
        parser.error("the following arguments are required: --weights")


def _convert(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="direction", required=True)
    split = commands.add_parser("split", prog=f"{parser.prog} split", description="a full checkpoint into its parts")
    split.add_argument("checkpoint", type=Path)
    add_output(split)
    join = commands.add_parser("join", prog=f"{parser.prog} join", description="three parts into a full checkpoint")
    for component in ("adapter", "sam2", "beit3"):
        join.add_argument(f"--{component}", required=True, type=Path, metavar="FILE")
    add_output(join, "the checkpoint", "FILE")


def _check(parser: Parser) -> None:
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="datasets; default: every benchmark")
    add("--own", nargs="+", default=[], metavar="FILE", help="descriptions of custom datasets")
    add("--read", action="store_true", help="open every image and its ground truth")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes of --read")


def _rule_weights(parser: Parser) -> None:
    add_output(parser)
    parser.add_argument("--seed", type=int, default=0)
    add_config(parser, "tiny")


def _doctor(parser: Parser) -> None:
    add = parser.add_argument
    add("configs", nargs="*", default=["shapes", "released", "coco"], metavar="CONFIG", help="default: %(default)s")


def _download(parser: Parser) -> None:
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="files to fetch, see --list")
    add("--list", action="store_true", help="show every name, its file, and whether it is here")
    add("--output", type=given_path, default=weights_folder(), metavar="DIR", help="default: %(default)s")
    add(
        "--verify",
        action="store_true",
        help="check files that are here against the published SHA-256, or their .sha256",
    )


def _prepare(parser: Parser) -> None:
    from openworldsam.data.prepare.command import PREPARATIONS

    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, entry in PREPARATIONS.items():
        about = f"Make {entry.help}.\n\n{entry.files}\n\n{REPEATED}"
        command = names.add_parser(name, help=entry.help, description=about)
        root = "default: $DETECTRON2_DATASETS or datasets"
        command.add_argument("--root", type=Path, default=dataset_root(), metavar="DIR", help=root)
        for flag, option in entry.options.items():
            command.add_argument(flag, **option)


REPEATED = "May be interrupted and repeated. datasets/README.md says what must be there first."
COMMANDS = {
    "download": Command(
        "fetch public weights by name",
        "openworldsam.download:run",
        _download,
        "  openworldsam download --list\n  openworldsam download openworldsam_coco beit3_tokenizer",
        "The same command again resumes.",
    ),
    "verify": Command(
        "say what a weight file holds, and which fusion it was trained with",
        "openworldsam.verify.command:run",
        _verify,
        "  openworldsam verify --weights model_final.pth --images DIR --output output/verify",
        "weights/README.md explains the report, which can be attached to an issue.",
        _check_verify,
    ),
    "convert": Command(
        "convert weights from and to the released checkpoints' layout",
        "openworldsam.checkpoint.command:run",
        _convert,
        "  openworldsam convert split model_final.pth --output weights/coco\n"
        "  openworldsam convert join --adapter A --sam2 S --beit3 B --output model_final.pth",
        "split writes adapter.safetensors (what was trained), sam2.safetensors and beit3.safetensors; join writes one\n"
        "checkpoint that the released code loads. S and B may be any file that holds these weights.",
    ),
    "prepare": Command(
        "make the files of a dataset that its publisher does not offer",
        "openworldsam.data.prepare.command:run",
        _prepare,
        "  openworldsam prepare coco\n  openworldsam prepare ade20k_150 --root /data --workers 8",
        REPEATED,
    ),
    "check": Command(
        "check that datasets are complete",
        "openworldsam.data.check:run",
        _check,
        "  openworldsam check coco_2017_val_panoptic_openworldsam\n  openworldsam check --own reef/val.yaml --read",
        "Names each missing file and the command that makes or fetches it.",
    ),
    "score": Command(
        "score saved predictions of any method against ground truth",
        "openworldsam.evaluation.score:run",
        _score,
        "  openworldsam score --task panoptic --gt GT.json --gt-dir DIR --pred P.json --output OUT.json\n"
        "  openworldsam score --task semantic --gt-dir DIR --pred-dir DIR --classes names.txt --output OUT.json",
        _FORMATS,
    ),
    "rule-weights": Command(
        "make weights by a rule, to try every tool without a download; their masks are meaningless",
        "openworldsam.parity.command:make_rule_weights",
        _rule_weights,
        "  openworldsam rule-weights --config tiny --output output/tiny_weights",
        "A checkpoint in the released layout and a small tokenizer.",
    ),
    "doctor": Command(
        "versions, devices, weights, and what each config still needs",
        "openworldsam.doctor:run",
        _doctor,
        "  openworldsam doctor\n  openworldsam doctor coco/score_released",
    ),
}
