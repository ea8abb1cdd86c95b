#!/usr/bin/env python3
"""The command `openworldsam benchmark` from a clone: python tools/benchmark.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("benchmark")
