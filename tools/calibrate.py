#!/usr/bin/env python3
"""The command `openworldsam calibrate` from a clone: python tools/calibrate.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("calibrate")
