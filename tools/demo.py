#!/usr/bin/env python3
"""The command `openworldsam segment` from a clone: python tools/demo.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("segment")
