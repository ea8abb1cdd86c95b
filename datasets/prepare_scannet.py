#!/usr/bin/env python3
"""Make ScanNet-20's panoptic json and PNGs from the frames of the validation scenes.

ROOT/scannet/{scannetv2_val.txt,scannet_frames_25k/SCENE/{color,label,instance}} ->
ROOT/scannet/{scannet_panoptic_val.json,scannet_panoptic_val/}

With --raw-table, label/ (NYU40 ids) and instance/ are made first, from label-filt/ (raw ids) and instance-filt/, for
frames that you took out of the scans yourself; scannet_frames_25k has them.

May be interrupted and repeated. datasets/README.md says what must be there first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from openworldsam.data.prepare.command import Plan, run
from openworldsam.data.prepare.labels import make_scannet_labels
from openworldsam.data.prepare.panoptic import make_scannet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw-table", type=Path, metavar="FILE", help="scannetv2-labels.combined.tsv")


def make(plan: Plan, *, raw_table: Path | None) -> list[str]:
    """The label images if a table is given, then the panoptic json."""
    return [*(make_scannet_labels(plan, raw_table) if raw_table else []), *make_scannet(plan)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(__doc__, make, argv, add_arguments)


if __name__ == "__main__":
    sys.exit(main())
