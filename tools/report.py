#!/usr/bin/env python3
"""The command `openworldsam report` from a clone: python tools/report.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("report")
