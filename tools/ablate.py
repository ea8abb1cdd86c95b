#!/usr/bin/env python3
"""Repeat the paper's ablations on Shapes: train and score every variant, write docs/shapes_ablation.md with its plot.

python tools/ablate.py --output output/ablation [--runs E1 E3 ...] [--seeds 3] [--iterations N] [KEY VALUE ...]
python tools/ablate.py --output output/ablation --figures docs/images     # Fig. 3 and two-stage inference, too
python tools/ablate.py --output output/ablation --runs --figures docs/images --adapter FILE     # of these weights alone

The same command again resumes. The report covers all runs in the folder.
"""

from openworldsam.ablation.command import main

if __name__ == "__main__":
    main()
