"""The zoo: every method on the same digits, with the same networks and the same budget of CPU time.

``python -m benchmarks.zoo`` trains and scores, ``python -m benchmarks.zoo --report`` writes the table. A training split
of handwritten digits in three modalities (both halves of the image, and the class) has half of its entries hidden at
random. The budget is CPU seconds of one thread, so that a busy machine does not change what is measured.
"""
