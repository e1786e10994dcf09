"""Acceptance per request and per place, in the names that serving engines report it by.

Source of the per-request schema: vLLM, ``--per-request-spec-decode-metrics`` (pull request 48915, 2026). Of the rate by
place: llama.cpp (pull request 24536), after vLLM's own metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from specdec.core.metrics import ratio


def speculative_decoding(accepted: Sequence[int], drafted: Sequence[int], *, detailed: bool = False) -> dict[str, Any]:
    """A request's acceptance. Steps without a draft do not count.

    Args:
        accepted: accepted drafted tokens of each step. drafted: proposed ones; of a tree, all its nodes.
        detailed: with the two lists.

    Returns:
        ``acceptance_histogram[j]`` is how many steps accepted j tokens, ``mean_acceptance_length`` counts the token
        that every step adds, ``num_spec_tokens`` is the longest draft. Rates are None where nothing was drafted.
    """
    steps = [(a, d) for a, d in zip(accepted, drafted, strict=True) if d]
    counts = Counter(a for a, _ in steps)
    num_accepted, num_drafted = sum(a for a, _ in steps), sum(d for _, d in steps)
    found = {
        "mean_acceptance_length": 1 + num_accepted / len(steps) if steps else None,
        "draft_acceptance_rate": ratio(num_accepted, num_drafted),
        "acceptance_histogram": [counts[j] for j in range(max(counts, default=-1) + 1)],
        "num_spec_steps": len(steps),
        "num_accepted_draft_tokens": num_accepted,
        "num_draft_tokens": num_drafted,
        "num_spec_tokens": max((d for _, d in steps), default=0),
    }
    if detailed:
        found |= {"per_step_accepted": [a for a, _ in steps], "per_step_drafted": [d for _, d in steps]}
    return found


def by_place(steps: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """Acceptance by place of the draft, over all steps that drafted.

    Args:
        steps: accepted tokens and levels of each step's draft.

    Returns:
        ``acceptance_by_place[i]``: the share of steps that accepted more than i tokens. ``first_rejections[i]``: steps
        whose first rejected token stood at place i; those that accepted everything are not among them.
    """
    drafting = [(accepted, levels) for accepted, levels in steps if levels]
    longest = max((levels for _, levels in drafting), default=0)
    rejected = Counter(accepted for accepted, levels in drafting if accepted < levels)
    return {
        "acceptance_by_place": [
            sum(accepted > place for accepted, _ in drafting) / len(drafting) for place in range(longest)
        ],
        "first_rejections": [rejected[place] for place in range(longest)],
    }
