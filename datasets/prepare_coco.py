#!/usr/bin/env python3
"""Make what COCO does not offer for download, then check everything.

python datasets/prepare_coco.py            the filtered list of training images, and semantic PNGs of both splits
python datasets/prepare_coco.py --check    counts, missing files, and every panoptic PNG against its json

May be interrupted and repeated. datasets/README.md says what must be there first.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from openworldsam.data.datasets.coco import dataset_root
from openworldsam.data.prepare import coco as prepare
from openworldsam.utils.files import read_json, save_json

SHOWN = 20  # problems; a wrong folder has 118,287


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=dataset_root(), help="default: $DETECTRON2_DATASETS or datasets")
    parser.add_argument("--splits", nargs="+", choices=list(prepare.SPLITS), default=list(prepare.SPLITS))
    parser.add_argument("--refs", type=Path, metavar="FILE", help="default: ROOT/refcocog/refs(umd).p")
    parser.add_argument("--karpathy", type=Path, metavar="FILE", help="dataset_coco.json, to leave out its images too")
    parser.add_argument("--karpathy-splits", nargs="+", choices=["val", "test"], default=["test"], help="default: test")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--check", action="store_true", help="make nothing, check what is there")
    return parser.parse_args(argv)


def make_filtered_list(args: argparse.Namespace) -> None:
    """Write the list of training images, unless there is one."""
    target = args.root / prepare.FILTERED
    if target.exists():
        print(f"{target}: already there, left as it is")
        return
    refs = args.refs or args.root / "refcocog" / "refs(umd).p"
    removed = prepare.referring_images(refs)
    note = f"made by prepare_coco.py: without {len(removed)} images of RefCOCOg-UMD val"
    if args.karpathy:
        karpathy = prepare.karpathy_images(args.karpathy, args.karpathy_splits)
        note += f", without {len(karpathy)} images of COCO-Karpathy {' and '.join(args.karpathy_splits)}"
        removed |= karpathy
    content = read_json(args.root / prepare.SPLITS["train"].json, "datasets/README.md says how to get COCO")
    filtered = prepare.filter_panoptic(content, removed, note)
    save_json(target, filtered)
    print(f"{target}: {len(filtered['annotations'])} of {len(content['annotations'])} images; {note}")


def make(args: argparse.Namespace) -> list[str]:
    """Make everything that is not there yet; returns the problems found on the way."""
    problems = []
    if "train" in args.splits:
        make_filtered_list(args)
    for split in args.splits:
        records = prepare.load_split(args.root, split)
        found = prepare.make_semantic_pngs(records, args.workers, f"semantic PNGs of {split}")
        print(f"{args.root / str(prepare.SPLITS[split].semseg_root)}: {len(records) - len(found)} of {len(records)}")
        problems += found
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit status: 0, 1 for data that are not as they should be, 2 if it cannot be done, 130 for Ctrl-C.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    args = parse_args(argv)
    try:
        if args.check:
            summary, problems = prepare.check_coco(args.root, args.splits, args.workers)
            print("\n".join(summary))
        else:
            problems = make(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command again goes on from here", file=sys.stderr)
        return 130
    for problem in problems[:SHOWN]:
        print(f"problem: {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"and {len(problems) - SHOWN} more problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
