"""Selectors in an engine of a small pair, and the folder of a trained one."""

from __future__ import annotations

from dataclasses import replace

import torch
from harness import ALIGNMENTS

from specdec.conformance.decoding import drafter_context
from specdec.conformance.models import small_pair
from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.engine.loop import RoundLoop
from specdec.registry import create
from specdec.selectors.base import Roots, RowShape, Selector, SelectorContext
from specdec.selectors.combs import CombLayout
from specdec.selectors.network import NUM_NUMBERS, SelectorNetwork
from specdec.selectors.times import NODES
from specdec.selectors.trained import save_selector
from specdec.trees.paths import PathsTree

PROMPTS = [(3, 1, 4, 1, 5, 9), (2,), (7, 1, 8, 2, 8, 1, 8, 2, 8), (5, 5), (1, 6, 1, 8)]
NUM_NEW, TEMPERATURE = 9, 1.3
PARAMS = SamplingParams(TEMPERATURE)


def context(num_paths: int = 3, depth: int = 4, verifier: str = "specinfer", params=PARAMS, pair=None):
    target, draft = small_pair(0, "float64")
    return SelectorContext(num_paths, 1, depth, verifier, params, pair or ["a", "b"], target, draft)


class ByLength(Selector):
    """Shapes that differ by row and round, no draft included."""

    def choose(self, roots: Roots) -> list[RowShape]:
        at = [length % 5 for length in roots.lengths]
        return [RowShape(1 + n % 3, n % 2, min(n, depth)) for n, depth in zip(at, roots.depths, strict=True)]


def decode(selector: Selector | None, alignment="inplace", batch=3, verifier="naive", greedy_rows=True):
    """The decoded prompts; every second row is greedy."""
    target, draft = small_pair(0, "float64")
    clock = Clock()
    own = drafter_context(target, draft, clock, ALIGNMENTS[alignment], [[]])
    own = replace(own, tree=PathsTree(num_paths=3), selector=selector)
    loop = RoundLoop(
        ALIGNMENTS[alignment](target, clock),
        create("drafter", "model", own),
        create("verifier", verifier),
        create("scheduler", "continuous", batch, batch),
        create("draft_length", "fixed", gamma=4),
        clock,
    )
    rows = [
        Sequence(i, list(p), NUM_NEW, sampling=SamplingParams(0.0 if greedy_rows and i % 2 else TEMPERATURE, seed=i))
        for i, p in enumerate(PROMPTS)
    ]
    loop.drafter.prepare(batch)
    pool = SequencePool(rows)
    while not pool.done:
        loop.step(pool)
    return rows


def untrained(path, pair, temperatures, depth=3):
    """The folder of a selector of random weights, of shapes up to two paths."""
    torch.manual_seed(0)
    layout, numbers = CombLayout(2, depth), NUM_NUMBERS + 2 + len(NODES)
    settings = {
        "selector": "trained",
        "pair": pair,
        "verifier": "specinfer",
        "temperatures": temperatures,
        "num_paths": 2,
        "depth": depth,
        "target_size": 32,
        "draft_size": 32,
        "num_numbers": numbers,
        "usual": [{"temperature": t, "shape": [2, 1, depth]} for t in temperatures],
    }
    save_selector(path, SelectorNetwork(32, 32, numbers, len(layout.shapes)), settings)
    return str(path)
