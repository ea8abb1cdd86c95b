"""How long each stage takes and what it costs; behind tools/benchmark.py."""
