#!/usr/bin/env python3
"""The command `openworldsam parity` from a clone: python tools/check_parity.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("parity")
