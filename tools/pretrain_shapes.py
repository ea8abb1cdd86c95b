#!/usr/bin/env python3
"""The command `openworldsam pretrain` from a clone: python tools/pretrain_shapes.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("pretrain")
