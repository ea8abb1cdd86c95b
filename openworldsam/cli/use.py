"""The subcommands that segment: their options."""

from __future__ import annotations

import argparse
from pathlib import Path

from openworldsam.cli.options import (
    TASKS,
    Command,
    Parser,
    add_config,
    add_output,
    add_processes,
    add_prompts,
    add_threshold,
)

MARKED = "texts, or @FILE with one per line; stuff: marks one that names a region"


def _segment(parser: Parser) -> None:
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", type=Path, metavar="IMAGE")
    source.add_argument("--scene", type=int, metavar="N", help="a scene of the Shapes world instead")
    absent = "; with --scene by default everything in the scene, and a shape that is not there"
    add_prompts(parser, MARKED + absent, required=False)
    add("--task", default="instance", choices=[*TASKS, "all"], help="default: instance")
    add_threshold(parser)
    add_output(parser)
    add("--stuff", nargs="*", metavar="TEXT", help="prompts that name regions (default: COCO's stuff classes)")
    add_config(parser, choose="shapes for --scene, else released")


def _check_segment(parser: Parser, args: argparse.Namespace) -> None:
    if args.input and not args.prompts:
        parser.error("--input needs --prompts")
    if args.scene is not None and args.scene < 0:
        parser.error(f"--scene is 0 or more, got {args.scene}")
    args.config = args.config or ("released" if args.input else "shapes")


def _annotate(parser: Parser) -> None:
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="DIR", help="images, also in subfolders")
    add_prompts(parser, MARKED)
    add("--task", required=True, choices=TASKS)
    add_threshold(parser)
    add_output(parser)
    add("--overlays", action="store_true", help="also draw the masks over each image")
    add("--label-studio", action="store_true", help="also write files for Label Studio")
    add("--cvat", action="store_true", help="also write files for CVAT")
    add_processes(parser, None, "default: one per GPU")
    add_config(parser, "released")


def _video(parser: Parser) -> None:
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="CLIP", help="a video, or a folder of frames")
    add_prompts(parser)
    tasks = "every occurrence of a prompt (default), or the best"
    add("--task", default="instance", choices=("instance", "referring"), help=tasks)
    add_threshold(parser)
    add_output(parser)
    add("--every", type=int, default=15, metavar="N", help="look for new objects every N frames (15); 0: in the first")
    trackers = "SAM2's memory (default), or the prompts in every frame, for weights without video modules"
    add("--tracker", default="memory", choices=("memory", "detection"), help=trackers)
    add("--forget", type=int, default=300, metavar="N", help="forget objects out of sight for N frames (300)")
    add_config(parser, "released")


def _app(parser: Parser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in, without a password")
    add("--port", type=int, default=7860)
    names = "further names that the server is reached by, such as that of a proxy"
    add("--allowed-hosts", nargs="+", default=[], metavar="NAME", help=names)
    add("--root-path", default="", metavar="PATH", help="path or address of the page behind a proxy, such as /segment")
    add("--queue", type=int, default=32, metavar="N", help="requests that may wait for the model (32)")
    work = "pixels of all masks of a question, in millions (800); prompts x queries x pixels of the image"
    add("--max-work", type=int, default=800, metavar="N", help=work)
    add_threshold(parser)
    add_config(parser, "shapes")


def _check_app(parser: Parser, args: argparse.Namespace) -> None:
    if ":" in args.host:
        parser.error(f"--host is a name or an IPv4 address, which is all that Gradio listens on; got {args.host!r}")
    if not 1 <= args.port <= 65535:
        parser.error(f"--port is 1 to 65535, got {args.port}")
    if args.queue < 1 or args.max_work < 1:
        parser.error(f"--queue and --max-work are at least 1, got {args.queue} and {args.max_work}")
    if args.root_path and not args.root_path.startswith(("/", "http://", "https://")):
        parser.error(f"--root-path begins with / or is an address, got {args.root_path}")


COMMANDS = {
    "segment": Command(
        "segment images by text; an overlay and a COCO JSON for each image and task",
        "openworldsam.demo:run",
        _segment,
        '  openworldsam segment --input photo.jpg --prompts "zebra" "grass" --task panoptic --output output\n'
        "  openworldsam segment --scene 152 --task all --output output",
        check=_check_segment,
        weights=True,
    ),
    "annotate": Command(
        "segment all images of a folder; annotation files for other tools",
        "openworldsam.annotate.command:run",
        _annotate,
        "  openworldsam annotate --input photos --prompts @prompts.txt --task panoptic --output output/photos",
        "The same command resumes an interrupted run.",
        weights=True,
    ),
    "video": Command(
        "find objects by text in a clip, and track them",
        "openworldsam.video.command:run",
        _video,
        '  openworldsam video --input clip.mp4 --prompts "zebra" --output output/clip',
        weights=True,
    ),
    "app": Command(
        "serve a page to try the model on",
        "openworldsam.app.command:run",
        _app,
        "  openworldsam app\n  openworldsam app --config released --port 8000",
        check=_check_app,
        weights=True,
    ),
}
