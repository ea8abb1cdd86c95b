#!/usr/bin/env python3
"""Make ADE20K-847's images and 16-bit label images from the validation images of the 2021 release.

ROOT/ADE20K_2021_17_01/images/ADE/validation -> ROOT/ADE20K_2021_17_01/{images,annotations}_detectron2/validation

May be interrupted and repeated. datasets/README.md says what must be there first.
"""

import argparse
import sys
from collections.abc import Sequence

from openworldsam.data.prepare.command import run
from openworldsam.data.prepare.labels import make_ade20k_847


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--short-side",
        type=int,
        default=512,
        metavar="PIXELS",
        help="scale larger images down to it, as is usual; 0: keep all sizes; default 512",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(__doc__, make_ade20k_847, argv, add_arguments)


if __name__ == "__main__":
    sys.exit(main())
