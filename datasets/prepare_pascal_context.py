#!/usr/bin/env python3
"""Make the label images of PASCAL Context-59 and Context-459 from the official LabelMaps.

ROOT/VOCdevkit/VOC2010/trainval/*.mat -> ROOT/VOCdevkit/VOC2010/annotations_detectron2/{pc59_val,pc459_val}

May be interrupted and repeated. datasets/README.md says what must be there first.
"""

import sys
from collections.abc import Sequence

from openworldsam.data.prepare.command import run
from openworldsam.data.prepare.labels import make_pascal_context


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(__doc__, make_pascal_context, argv)


if __name__ == "__main__":
    sys.exit(main())
