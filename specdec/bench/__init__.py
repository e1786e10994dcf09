"""The benchmark suite: ``python -m specdec.bench suite=NAME``.

Methods are measured in turn (A B C, B C A, ...), each behind a warm-up of its own, on pinned cores; every figure is a
median with a bootstrap interval, every ratio a ratio of medians over the same turns, and every row says how many of
its outputs equal the target alone at batch 1.
"""
