#!/usr/bin/env python3
"""Train the adapter.

python tools/train_net.py --config-file configs/coco/openworldsam.yaml [--num-gpus N] [--resume] [KEY VALUE ...]
torchrun --nproc-per-node N tools/train_net.py --config-file configs/coco/openworldsam.yaml
"""

from openworldsam.engine.train import main

if __name__ == "__main__":
    main()
