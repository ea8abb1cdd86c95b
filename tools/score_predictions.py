#!/usr/bin/env python3
"""The command `openworldsam score` from a clone: python tools/score_predictions.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("score")
