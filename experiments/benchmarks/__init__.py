"""Benchmarks: cflow and its peers, measured in the same run."""
