#!/usr/bin/env python3
"""Measure time and memory of each stage; docs/performance.md has results.

python tools/benchmark.py --config-file configs/presets/paper.yaml --against plain --output output/benchmark
python tools/benchmark.py --config-file configs/tiny.yaml --output output/benchmark_tiny MODEL.WEIGHTS ""
"""

from openworldsam.speed.command import main

if __name__ == "__main__":
    main()
