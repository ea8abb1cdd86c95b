#!/usr/bin/env python3
"""Make the files of a dataset that its publisher does not offer for download; datasets/README.md has the details.

python datasets/prepare.py --help                       the datasets
python datasets/prepare.py NAME --help                  what is made of what, and the options
python datasets/prepare.py NAME [--root DIR] [...]      make it; may be interrupted and repeated
"""

from openworldsam.cli import run

if __name__ == "__main__":
    run("prepare")
