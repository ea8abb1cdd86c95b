#!/usr/bin/env python3
"""The command `openworldsam annotate` from a clone: python tools/annotate.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("annotate")
