"""gpools and its peers at the same work, in one run: python -m benchmarks, or make bench.

`fleet.py` is a program of its own.
"""
