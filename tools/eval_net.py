#!/usr/bin/env python3
"""The command `openworldsam evaluate` from a clone: python tools/eval_net.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("evaluate")
