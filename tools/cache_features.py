#!/usr/bin/env python3
"""Compute the frozen encoders' features of the training data once; training then reads them.

python tools/cache_features.py --config-file configs/coco/openworldsam.yaml --output DIR [--num-gpus N]
python tools/cache_features.py --config-file configs/coco/openworldsam.yaml --output DIR --verify
"""

from openworldsam.engine.cache_features import main

if __name__ == "__main__":
    main()
