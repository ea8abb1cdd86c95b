#!/usr/bin/env python3
"""The command `openworldsam train` from a clone: python tools/train_net.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("train")
