"""Benchmarks: ratios measured in one run, interleaved, medians after warm-up."""
