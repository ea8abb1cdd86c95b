#!/usr/bin/env python3
"""Compare with numbers recorded from the released model; exit 0 only if all hold.

python tools/check_parity.py --golden model_seed0.npz --image zebra.jpg
python tools/check_parity.py --golden postprocess_seed0.npz

A model_*.npz file needs its image, 9 GB of memory and 8 GB of temporary disk, and takes minutes: the full-size model's
weights are made by rule, passed through the released checkpoint layout and the converter, and preset `released` runs
from preprocessing to one training step.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from openworldsam.parity import check_model, check_postprocess, format_checks, read_golden
from openworldsam.utils.launch import user_errors


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", required=True, metavar="FILE.npz")
    parser.add_argument("--image", metavar="IMG", help="the image of a model_*.npz file")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with user_errors():
        of_the_model = "input_ids" in read_golden(args.golden)
        if of_the_model and not args.image:
            raise ValueError(f"{args.golden} was recorded from an image: give it as --image")
        checks = check_model(args.golden, args.image) if of_the_model else check_postprocess(args.golden)
    print(format_checks(checks))
    sys.exit(not all(check.ok for check in checks))


if __name__ == "__main__":
    main()
