#!/usr/bin/env python3
"""Compare the scores of a model with the quality of its masks on DATASETS.HELD_OUT, and choose their thresholds.

python tools/calibrate.py --config-file configs/shapes/score.yaml --output DIR [--store] [--num-gpus N] [KEY VALUE ...]

DIR gets calibration.json and calibration.png; --store writes the thresholds into the file of the score head.
"""

from openworldsam.report.calibration import main

if __name__ == "__main__":
    main()
