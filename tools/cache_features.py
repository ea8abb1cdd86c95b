#!/usr/bin/env python3
"""The command `openworldsam cache` from a clone: python tools/cache_features.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("cache")
