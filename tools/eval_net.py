#!/usr/bin/env python3
"""Evaluate a model on registered datasets; prints a table and writes DIR/results.json.

python tools/eval_net.py --config-file configs/shapes/openworldsam.yaml --output DIR [--num-gpus N] [KEY VALUE ...]
python tools/eval_net.py --config-file configs/shapes/openworldsam.yaml --benchmarks shapes_absent_val --output DIR

With --save-predictions, the same command again resumes an interrupted evaluation.
"""

from openworldsam.engine.evaluate import main

if __name__ == "__main__":
    main()
