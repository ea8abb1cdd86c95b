#!/usr/bin/env python3
"""The command `openworldsam ablate` from a clone: python tools/ablate.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("ablate")
