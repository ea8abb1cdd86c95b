#!/usr/bin/env python3
"""Make the test images and 37-class label images of SUN RGB-D from the official archives; needs h5py.

ROOT/sun_rgbd/{SUNRGBD,SUNRGBDtoolbox} -> ROOT/sun_rgbd/{image,label37}/test

May be interrupted and repeated. datasets/README.md says what must be there first.
"""

import sys
from collections.abc import Sequence

from openworldsam.data.prepare.command import run
from openworldsam.data.prepare.sun_rgbd import make_sun_rgbd


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(__doc__, make_sun_rgbd, argv)


if __name__ == "__main__":
    sys.exit(main())
