#!/usr/bin/env python3
"""Segment images by text.

python tools/demo.py --config-file configs/presets/released.yaml --input zebra.jpg --prompts "zebra" "grass" \
    --task panoptic --output output/demo --opts MODEL.WEIGHTS weights/model_final.pth
"""

from openworldsam.demo import main

if __name__ == "__main__":
    main()
