#!/usr/bin/env python3
"""The command `openworldsam convert` from a clone: python tools/convert_weights.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("convert")
