#!/usr/bin/env python3
"""Convert weights from and to the released checkpoints' layout.

python tools/convert_weights.py split weights/model_final.pth --output weights/coco
    -> adapter.safetensors (what was trained), sam2.safetensors, beit3.safetensors
python tools/convert_weights.py join --adapter A --sam2 S --beit3 B --output model_final.pth
    -> one checkpoint that the released code loads; S and B may be any file that holds these weights
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from openworldsam.checkpoint import convert_released, convert_to_released
from openworldsam.utils.launch import say, user_errors


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split", help="a full checkpoint into its three components")
    split.add_argument("checkpoint", type=Path)
    split.add_argument("--output", required=True, type=Path, metavar="DIR")
    join = commands.add_parser("join", help="three components into a full checkpoint")
    for component in ("adapter", "sam2", "beit3"):
        join.add_argument(f"--{component}", required=True, type=Path, metavar="FILE")
    join.add_argument("--output", required=True, type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    with user_errors():
        if args.command == "split":
            say(*convert_released(args.checkpoint, args.output).values())
        else:
            convert_to_released(args.adapter, args.sam2, args.beit3, args.output)
            say(args.output)


if __name__ == "__main__":
    main()
