#!/usr/bin/env python3
"""Make weights by a rule instead of training: a checkpoint in the released layout and a small tokenizer.

They let every tool run without a download. The masks are meaningless.

python tools/make_rule_weights.py --config-file configs/tiny.yaml --output output/tiny_weights
"""

import argparse
from pathlib import Path

from openworldsam.config import load_config
from openworldsam.modeling import OpenWorldSAM
from openworldsam.parity.rule_weights import save_rule_checkpoint, save_tokenizer
from openworldsam.utils.launch import user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with user_errors():
        cfg = load_config(args.config_file)
        save_rule_checkpoint(OpenWorldSAM(cfg), cfg, args.seed, args.output / "model_final.pth")
        save_tokenizer(args.output / "beit3.spm")
    print(f"{args.output}/model_final.pth and beit3.spm: made by rule, not trained")


if __name__ == "__main__":
    main()
