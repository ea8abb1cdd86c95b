#!/usr/bin/env python3
"""Segment all images of a folder; the same as the command openworldsam-annotate.

python tools/annotate.py --config-file configs/presets/released.yaml --input DIR --prompts FILE --task panoptic \
    --output output/annotations --opts MODEL.WEIGHTS weights/model_final.pth
"""

from openworldsam.annotate.command import main

if __name__ == "__main__":
    main()
