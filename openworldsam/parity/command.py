"""The commands `openworldsam parity` and `openworldsam rule-weights`."""

from __future__ import annotations

import argparse
import logging
import sys

from openworldsam.config import load_config
from openworldsam.modeling import OpenWorldSAM
from openworldsam.parity import check_model, check_postprocess, format_checks, read_golden
from openworldsam.parity.rule_weights import save_rule_checkpoint, save_tokenizer
from openworldsam.utils.launch import say, user_errors


def run(args: argparse.Namespace) -> None:
    """Compare; exits with 1 if a number is not as recorded, 2 after a user error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with user_errors():
        of_the_model = "input_ids" in read_golden(args.golden)
        if of_the_model and not args.image:
            raise ValueError(f"{args.golden} was recorded from an image: give it as --image")
        checks = check_model(args.golden, args.image) if of_the_model else check_postprocess(args.golden)
    print(format_checks(checks))
    sys.exit(not all(check.ok for check in checks))


def make_rule_weights(args: argparse.Namespace) -> None:
    """Write rule-made weights; exits with 2 after a user error."""
    with user_errors():
        cfg = load_config(args.config, args.opts)
        save_rule_checkpoint(OpenWorldSAM(cfg), cfg, args.seed, args.output / "model_final.pth")
        save_tokenizer(args.output / "beit3.spm")
        say(f"{args.output}/model_final.pth and beit3.spm: made by rule, not trained")
