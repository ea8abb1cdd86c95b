#!/usr/bin/env python3
"""Make the two frozen encoders of the Shapes world, as SAM2 and EVF-SAM's BEiT-3 were made.

python tools/pretrain_shapes.py sam2
python tools/pretrain_shapes.py beit3
"""

from openworldsam.pretraining.command import main

if __name__ == "__main__":
    main()
