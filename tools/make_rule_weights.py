#!/usr/bin/env python3
"""The command `openworldsam rule-weights` from a clone: python tools/make_rule_weights.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("rule-weights")
