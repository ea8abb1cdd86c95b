#!/usr/bin/env python3
"""Make Cityscapes' panoptic json and PNGs of the validation images from their instanceIds.

ROOT/cityscapes/{leftImg8bit,gtFine}/val -> ROOT/cityscapes/{panoptic_val.json,panoptic_val/}

May be interrupted and repeated. datasets/README.md says what must be there first.
"""

import sys
from collections.abc import Sequence

from openworldsam.data.prepare.command import run
from openworldsam.data.prepare.panoptic import make_cityscapes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(__doc__, make_cityscapes, argv)


if __name__ == "__main__":
    sys.exit(main())
