"""Exact references in float64: what a correct method must return on models that can be solved.

Test layer: plain torch, one row at a time, independent of the library.
"""
