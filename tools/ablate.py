#!/usr/bin/env python3
"""Repeat the paper's ablations on Shapes: train and score every variant, write docs/shapes_ablation.md with its plots.

python tools/ablate.py --output output/ablation --workers 2 [--runs E1 E3 ...] [--seeds 3] [KEY VALUE ...]
python tools/ablate.py --output output/ablation --workers 2 --dry-run     # what remains, and how long it takes
python tools/ablate.py --output output/ablation --figures docs/images     # Fig. 3 and two-stage inference, too
python tools/ablate.py --output output/ablation --runs --figures docs/images --adapter FILE     # of these weights alone

Each run is a process, whose output is in console.txt in its folder. Workers divide the cores among them and take the
GPUs in turn. After Ctrl-C or a failed run, the same command resumes. The report covers all runs in the folder.
"""

from openworldsam.ablation.command import main

if __name__ == "__main__":
    main()
