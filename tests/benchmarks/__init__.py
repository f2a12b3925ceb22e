"""Benchmarks: ratios measured alternately, never timed tests. See `run.py`."""
