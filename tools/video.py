#!/usr/bin/env python3
"""The command `openworldsam video` from a clone: python tools/video.py --help."""

from openworldsam.cli import run

if __name__ == "__main__":
    run("video")
