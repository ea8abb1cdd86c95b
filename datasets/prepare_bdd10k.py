#!/usr/bin/env python3
"""Make BDD10K's panoptic json and PNGs of the validation images from the bitmasks.

ROOT/bdd100k/labels/pan_seg/bitmasks/val -> ROOT/bdd100k/{panoptic_val.json,panoptic_val/}

May be interrupted and repeated. datasets/README.md says what must be there first.
"""

import sys
from collections.abc import Sequence

from openworldsam.data.prepare.command import run
from openworldsam.data.prepare.panoptic import make_bdd10k


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(__doc__, make_bdd10k, argv)


if __name__ == "__main__":
    sys.exit(main())
