#!/usr/bin/env python3
"""Segment and track objects in a video by text prompts.

python tools/video.py --config-file configs/presets/released.yaml --input clip.mp4 --prompts "zebra" \
    --output output/video --opts MODEL.WEIGHTS weights/model_final.pth
"""

from openworldsam.video.command import main

if __name__ == "__main__":
    main()
