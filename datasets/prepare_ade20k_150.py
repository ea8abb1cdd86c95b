#!/usr/bin/env python3
"""Make ADE20K-150's panoptic and instance jsons from the official annotations of its validation images.

ROOT/ADEChallengeData2016/{images,annotations,annotations_instance}/validation ->
ROOT/ADEChallengeData2016/{ade20k_panoptic_val.json,ade20k_panoptic_val/,ade20k_instance_val.json}

May be interrupted and repeated. datasets/README.md says what must be there first.
"""

import sys
from collections.abc import Sequence

from openworldsam.data.prepare.command import run
from openworldsam.data.prepare.panoptic import make_ade20k


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(__doc__, make_ade20k, argv)


if __name__ == "__main__":
    sys.exit(main())
