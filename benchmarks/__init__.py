"""Benchmarks: each `bench_*.py` runs by itself and leaves one small JSON file in `results/`."""
