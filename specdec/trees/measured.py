"""Acceptance by depth and rank, from the rounds that a run has recorded. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def chances_of(rounds: Iterable[Mapping[str, Any]]) -> list[list[float]]:
    """By depth and rank: the share of reached nodes with children of which the child of that rank was accepted.

    A rank that the run's trees never offered counts as never accepted, so they should be wide: for example those of
    ``tree=static tree.num_nodes=64``. Rounds of chains tell nothing of ranks and are left out.

    Args:
        rounds: lines of rounds.jsonl.
    """
    tried, accepted = Counter[int](), Counter[tuple[int, int]]()
    for line in rounds:
        if line.get("accepted_ranks") is None:
            continue
        for ranks, end_depth in zip(line["accepted_ranks"], line["end_depth"], strict=True):
            tried.update(range(min(len(ranks) + 1, end_depth)))
            accepted.update(enumerate(ranks))
    widths = {depth: 1 + max((rank for at, rank in accepted if at == depth), default=-1) for depth in tried}
    return [
        [accepted[depth, rank] / tried[depth] for rank in range(widths[depth])]
        for depth in range(max(tried, default=-1) + 1)
    ]
