"""Fetch the public weights into this folder, in a clone in which nothing is installed.

python weights/download.py --list
python weights/download.py sam2_hiera_large openworldsam_coco

It is `openworldsam download` with another default of --output.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))
from openworldsam.cli import run  # noqa: E402

if __name__ == "__main__":
    os.environ["OPENWORLDSAM_WEIGHTS"] = str(FOLDER)
    run("download")
