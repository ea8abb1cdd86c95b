"""The command `openworldsam convert`."""

from __future__ import annotations

import argparse

from openworldsam.checkpoint import convert_released, convert_to_released
from openworldsam.utils.launch import say, user_errors


def run(args: argparse.Namespace) -> None:
    """Run the command; exits with 2 after a user error."""
    with user_errors():
        if args.direction == "split":
            say(*convert_released(args.checkpoint, args.output).values())
        else:
            convert_to_released(args.adapter, args.sam2, args.beit3, args.output)
            say(args.output)
