"""The subcommands that train, evaluate and measure: their options."""

from __future__ import annotations

import argparse
from pathlib import Path

from openworldsam.cli.options import (
    DTYPES,
    Command,
    Parser,
    add_config,
    add_output,
    add_processes,
    given_path,
)


def _train(parser: Parser) -> None:
    add = parser.add_argument
    add("--resume", action="store_true", help="continue from the newest state in OUTPUT_DIR")
    add("--dry-run", action="store_true", help="describe the training without running it")
    add_processes(parser)
    add("--num-machines", type=int, default=1)
    add("--machine-rank", type=int, default=0)
    add("--dist-url", default="auto", help="address of the first machine")
    add("--output", type=given_path, metavar="DIR", help="OUTPUT_DIR: gets states, logs and the adapter")
    add_config(parser)


def _use_output(parser: Parser, args: argparse.Namespace) -> None:
    if args.output:
        args.opts += ["OUTPUT_DIR", str(args.output)]


def _evaluate(parser: Parser) -> None:
    add = parser.add_argument
    named = "datasets, in place of DATASETS.TEST; table1 stands for all of the paper's Table 1, and so on"
    add("--benchmarks", nargs="+", default=[], metavar="NAME", help=named)
    add_output(parser, "gets results.json and log.txt")
    saving = "write DIR/predictions, also of the ground truth; images that are there already are not predicted again"
    add("--save-predictions", action="store_true", help=saving)
    add_processes(parser)
    add_config(parser)


def _report(parser: Parser) -> None:
    add = parser.add_argument
    add("--runs", nargs="+", required=True, type=Path, metavar="DIR", help="outputs of `openworldsam evaluate`")
    add("--names", nargs="+", metavar="NAME", help="names on the page; default: those of the folders")
    add("--benchmarks", nargs="+", metavar="NAME", help="default: all that a run was evaluated on")
    add("--images", type=int, default=4, metavar="N", help="images per benchmark and task (4)")
    beside = "predictions of other methods to draw: DIR/BENCHMARK/{panoptic.json,panoptic/,instances.json,semantic/}"
    add("--others", nargs="+", default=[], type=_other_method, metavar="NAME=DIR", help=beside)
    add_output(parser, "the page", "FILE.html")


def _other_method(text: str) -> tuple[str, Path]:
    """Parse NAME=DIR; raises ArgumentTypeError."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(folder)


def _calibrate(parser: Parser) -> None:
    add_output(parser, "gets calibration.json and calibration.png")
    parser.add_argument("--store", action="store_true", help="write the thresholds into the file of the score head")
    add_processes(parser)
    add_config(parser)


def _cache(parser: Parser) -> None:
    add = parser.add_argument
    add_output(parser, "folder of the cache; its content is kept")
    features = "all: SAM2's output too, 8 MiB per image at 1024 pixels in half precision"
    add("--image-features", choices=("none", "all"), default="none", help=features)
    add("--dtype", choices=DTYPES, default="bf16", help="number format on the disk")
    add("--part", type=int, default=0, help="number of the part to do, from 0")
    add("--num-parts", type=int, default=1, help="number of parts, for several machines or jobs")
    add("--batch-size", type=int, default=4, help="images encoded at a time")
    add("--verify", action="store_true", help="only compare an existing cache with its checksums")
    add_processes(parser, help="processes on this machine; they share this part")
    add_config(parser)


def _ablate(parser: Parser) -> None:
    add = parser.add_argument
    add_output(parser, "folder of all runs")
    chosen = "rows; default: all. A row that evaluates the adapters of another brings its runs along"
    add("--runs", nargs="*", metavar="NAME", help=chosen)
    add("--seeds", type=int, default=3, help="trainings per run, from the config's SEED on")
    add("--iterations", type=int, default=0, help="replaces SOLVER.MAX_ITER; SOLVER.STEPS are scaled")
    add("--benchmarks", nargs="+", default=[], metavar="NAME", help="default: DATASETS.TEST")
    workers = "runs at a time, which share cores and GPUs; best one per core"
    add("--workers", type=int, default=1, metavar="N", help=workers)
    add("--dry-run", action="store_true", help="say what remains and how long, without running it")
    features = "train from feature caches, built first; they hold no image features, or all; E4 and E6 use none"
    add("--feature-cache", choices=("none", "all"), default="", help=features)
    add("--report", type=Path, metavar="FILE", help="a .md file; default: report.md in --output")
    add("--figures", type=Path, metavar="DIR", help="draw Fig. 3 and two-stage inference into DIR")
    add("--adapter", type=Path, help="adapter that the figures show; default: first E5 in --output")
    add_config(parser, "shapes/ablation")


def _pretrain(parser: Parser) -> None:
    add = parser.add_argument
    add("encoder", choices=("sam2", "beit3", "clip", "memory"), help="memory extends an existing SAM2")
    add("--output", type=given_path, default=Path("output/shapes"), metavar="DIR", help="folder for the training state")
    add("--steps", type=int, help="default: 12,000 (sam2), 30,000 (beit3), 3,000 (clip), 1,500 (memory)")
    add("--batch-size", type=int, help="scenes per step")
    add_config(parser, "shapes/paper")


def _benchmark(parser: Parser) -> None:
    add = parser.add_argument
    add("--against", metavar="CONFIG", help='a second config, or "plain"')
    add("--image", metavar="IMAGE", help="default: a random one of 640 x 480 pixels")
    numbers = "numbers of prompts (1 6 20 150)"
    add("--num-prompts", "--prompts", type=int, nargs="+", default=[1, 6, 20, 150], metavar="P", help=numbers)
    add("--precision", nargs="+", choices=DTYPES, default=["fp32"], help="of the networks (fp32)")
    add("--compile", action="store_true", help="also measure the stages with torch.compile")
    parts = ("stages", "training", "evaluation")
    add("--parts", nargs="+", choices=parts, default=parts, help="what is measured; default: all")
    add("--images", type=int, default=4, metavar="N", help="of an evaluation (4); a step has SOLVER.IMS_PER_BATCH")
    add("--warmup", type=int, default=1, metavar="N", help="untimed rounds (1)")
    add("--repeats", type=int, default=5, metavar="N", help="timed rounds (5)")
    add_output(parser)
    add_config(parser)


def _parity(parser: Parser) -> None:
    parser.add_argument("--golden", required=True, metavar="FILE.npz")
    parser.add_argument("--image", metavar="IMAGE", help="the image of a model_*.npz file")


COMMANDS = {
    "train": Command(
        "train the adapter, or a score head",
        "openworldsam.engine.train:run",
        _train,
        "  openworldsam train --config coco --processes 8\n"
        "  openworldsam train --config shapes/paper --output output/mine SOLVER.MAX_ITER 100 SOLVER.STEPS '[]'\n"
        "  torchrun --nproc-per-node 8 -m openworldsam train --config coco",
        check=_use_output,
        weights=True,
    ),
    "evaluate": Command(
        "evaluate a model on datasets; a table and results.json",
        "openworldsam.engine.evaluate:run",
        _evaluate,
        "  openworldsam evaluate --config shapes --output output/eval\n"
        "  openworldsam evaluate --config shapes --benchmarks shapes_absent_val --output output/absent",
        "With --save-predictions, the same command again resumes an interrupted evaluation.",
        weights=True,
    ),
    "report": Command(
        "write a page about evaluations",
        "openworldsam.report.command:run",
        _report,
        "  openworldsam report --runs output/eval --output report.html\n"
        '  openworldsam report --runs output/one output/two --names "one stage" "two stage" --output report.html',
        "The page has scores, classes, confusions, and images of several runs side by side.",
    ),
    "calibrate": Command(
        "compare scores with the quality of masks, and choose their thresholds",
        "openworldsam.report.calibration:run",
        _calibrate,
        "  openworldsam calibrate --config shapes/score --output output/calibration --store",
        "The images are those of DATASETS.HELD_OUT; --store writes the thresholds into the file of the score head.",
        weights=True,
    ),
    "cache": Command(
        "compute the frozen encoders' features of the training data once",
        "openworldsam.engine.cache_features:run",
        _cache,
        "  openworldsam cache --config coco --output cache/coco\n"
        "  openworldsam cache --config coco --output cache/coco --verify",
        "Training then reads them: DATASETS.FEATURE_CACHE cache/coco",
        weights=True,
    ),
    "ablate": Command(
        "repeat the paper's ablations on Shapes",
        "openworldsam.ablation.command:run",
        _ablate,
        "  openworldsam ablate --output output/ablation --workers 2 --dry-run     what remains, and how long it takes\n"
        "  openworldsam ablate --output output/ablation --feature-cache all --runs E1 --seeds 1     one row\n"
        "  openworldsam ablate --output output/ablation --feature-cache all --workers 2 --runs E1 E5",
        "Each run is a process, whose output is in console.txt in its folder. Workers divide the cores among them and\n"
        "take the GPUs in turn. After Ctrl-C or a failed run, the same command resumes. The report covers all runs,\n"
        "and those of another --output or machine that are in the .json file beside it.",
    ),
    "pretrain": Command(
        "train the encoders of the Shapes world, and the memory for video",
        "openworldsam.pretraining.command:run",
        _pretrain,
        "  openworldsam pretrain sam2\n  openworldsam pretrain beit3\n  openworldsam pretrain clip\n"
        "  openworldsam pretrain memory",
        "sam2 and beit3 replace the files that MODEL.SAM2.WEIGHTS and MODEL.PROMPT_ENCODER.WEIGHTS name; clip and\n"
        "memory write to --output. The same command resumes.",
    ),
    "benchmark": Command(
        "measure time and memory of each stage",
        "openworldsam.speed.command:run",
        _benchmark,
        "  openworldsam benchmark --config paper --against plain --output output/benchmark",
    ),
    "parity": Command(
        "compare with numbers recorded from the released model; exit 0 only if all hold",
        "openworldsam.parity.command:run",
        _parity,
        "  openworldsam parity --golden model_seed0.npz --image zebra.jpg\n"
        "  openworldsam parity --golden postprocess_seed0.npz",
        "A model_*.npz file needs its image, 9 GB of memory and 8 GB of temporary disk, and takes minutes. Weights of\n"
        "the full-size model are made by rule and passed through the released checkpoint layout and the converter;\n"
        "preset `released` runs from preprocessing to one training step.",
    ),
}
