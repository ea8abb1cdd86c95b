#!/usr/bin/env python3
"""Make RefCOCOg's json files of the UMD split from the published ones.

python datasets/prepare_refcocog.py    ROOT/refcocog/{refs(umd).p,instances.json} -> ROOT/coco/annotations

Nothing is written if the counts are not the published ones, unless --no-check is given.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from openworldsam.data.datasets.coco import dataset_root
from openworldsam.data.datasets.refcocog import DATASETS
from openworldsam.data.prepare import refcocog
from openworldsam.utils.files import read_json, save_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 if nothing could be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=dataset_root(), help="default: $DETECTRON2_DATASETS or datasets")
    parser.add_argument("--refs", type=Path, metavar="FILE", help="default: ROOT/refcocog/refs(umd).p")
    parser.add_argument("--instances", type=Path, metavar="FILE", help="default: instances.json beside it")
    parser.add_argument("--no-check", action="store_true", help="other counts than the published ones are a warning")
    args = parser.parse_args(argv)
    refs_file = args.refs or args.root / "refcocog" / "refs(umd).p"
    try:
        refs = refcocog.read_refs(refs_file)
        for split, expected in refcocog.EXPECTED_COUNTS.items():
            if (found := refcocog.count(refs, split)) != expected:
                message = f"{refs_file}, {split}: {found}; published is {expected}"
                if not args.no_check:
                    raise ValueError(f"{message}. Fetch refcocog.zip again, or give --no-check to go on")
                print(f"warning: {message}", file=sys.stderr)
        hint = "It is in refcocog.zip; datasets/README.md says where that is"
        instances = read_json(args.instances or refs_file.parent / "instances.json", hint)
        contents = {split: refcocog.convert(refs, instances, split) for split in refcocog.EXPECTED_COUNTS}
        for split, content in contents.items():
            target = args.root / DATASETS[f"refcocog_umd_{split}"]
            save_json(target, content)
            sentences = sum(len(annotation["sentences"]) for annotation in content["annotations"])
            sizes = f"{len(content['images'])} images, {len(content['annotations'])} objects, {sentences} sentences"
            print(f"{target}: {sizes}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
