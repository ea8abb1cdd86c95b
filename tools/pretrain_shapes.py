#!/usr/bin/env python3
"""Train the encoders of the Shapes world, as SAM2 and EVF-SAM's BEiT-3 were trained, and the memory for video.

python tools/pretrain_shapes.py sam2
python tools/pretrain_shapes.py beit3
python tools/pretrain_shapes.py memory
"""

from openworldsam.pretraining.command import main

if __name__ == "__main__":
    main()
