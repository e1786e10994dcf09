"""The benchmark suite: ``python -m specdec.bench suite=NAME``.

Methods are measured in turns (A B C, B C A, ...), each after a warm-up of its own, on pinned cores. Every figure is a
median with a bootstrap interval, every ratio a ratio of medians over the same turns, and every row says how many of
its outputs equal those of the target alone at batch 1.
"""
