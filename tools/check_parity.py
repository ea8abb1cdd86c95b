#!/usr/bin/env python3
"""Compare with numbers recorded from the released model; exit 0 only if all hold.

python tools/check_parity.py --golden model_seed0.npz --image zebra.jpg
python tools/check_parity.py --golden postprocess_seed0.npz

A file model_*.npz needs its image, 9 GB of memory and 8 GB of temporary disk, and takes minutes: it makes the
full-size model's weights by rule, passes them through the released checkpoint layout and the converter, and runs
preset `released` from preprocessing to one training step.
"""

import argparse
import logging
import sys
import zipfile

import numpy as np

from openworldsam.parity import check_model, check_postprocess, format_checks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", required=True, metavar="FILE.npz")
    parser.add_argument("--image", metavar="IMG", help="the image of a model_*.npz file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        with np.load(args.golden) as golden:
            of_the_model = "input_ids" in golden
        if of_the_model and not args.image:
            raise ValueError(f"{args.golden} was recorded from an image: give it as --image")
        checks = check_model(args.golden, args.image) if of_the_model else check_postprocess(args.golden)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_checks(checks))
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
