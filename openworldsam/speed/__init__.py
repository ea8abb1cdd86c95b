"""Time and cost of each stage: the implementation of tools/benchmark.py."""
