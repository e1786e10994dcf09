"""Greedy rows: is every token the target's argmax after the engine's own tokens before it, up to rounding?

Every token is judged, given the tokens that the engine itself emitted before it, so a row that takes the other side of
a tie is judged to its end. A row is

- *exact* if every token is the argmax of the target's logits, computed token by token as plain decoding does;
- a *near-tie* if at every other token the argmax leads by no more than 2 x factor x noise: each of the two logits of
  another correct computation may be off by factor x noise;
- a *failure* otherwise; also if a log-probability that the engine gave differs by more than that, if it went on after a
  stop token, or ended without one (where the stop tokens and the budget are known).

The engine's logits are not known, so a wrong cache that happens to give the right tokens is seen only where it gave
log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.audit.forced import Forced, Forcing, scores_of_row
from specdec.audit.rows import Row
from specdec.core.sampling import argmax
from specdec.core.sampling_params import GREEDY, SamplingParams
from specdec.equivalence.near_ties import NOISE_FACTOR

EXACT, NEAR_TIE, FAILURE = "exact", "near-tie", "failure"
MOST_LISTED = 8  # divergences that a verdict lists


@dataclass(frozen=True, slots=True)
class GreedyRules:
    """What a greedy row is held to."""

    params: SamplingParams = GREEDY
    noise_factor: float = NOISE_FACTOR
    stop_ids: frozenset[int] = frozenset()
    max_new_tokens: int | None = None  # None: the row's end is not judged
    raw_logprobs: bool = True  # of the model's logits; otherwise of the penalised ones
    logprob_tolerance: float = 0.0  # for log-probabilities that were rounded before they were written


def judge_greedy(row: Row, forcing: Forcing, rules: GreedyRules) -> dict[str, Any]:
    """The verdict on a row: ``verdict``, ``reason``, counts, and what stands at its first divergences."""
    forced = forcing.quick(row)
    scores_NV = scores_of_row(row, forced.logits_NV, rules.params)
    if row.logprobs is not None or not forcing.is_clear(_least_lead(row, scores_NV)):
        forced = forcing.measured(row)
        scores_NV = scores_of_row(row, forced.logits_NV, rules.params)
    penalty = rules.params.repetition_penalty
    bound = 2 * rules.noise_factor * forced.noise * max(penalty, 1 / penalty)
    found = list(_divergences(row, scores_NV, bound))
    problems = [_reason(item) for item in found if item["kind"] == FAILURE][:1]
    logprobs = _logprob_difference(row, forced, scores_NV, rules)
    if logprobs and logprobs["difference"] > (limit := bound + rules.logprob_tolerance):
        where = f"{logprobs['difference']:.3g} at token {logprobs['position']}"
        problems.append(f"log-probabilities differ from the target's by up to {where}; rounding explains {limit:.3g}")
    problems += _ending(row, int(argmax(scores_NV[-1:].float())), rules)
    verdict = FAILURE if problems else NEAR_TIE if found else EXACT
    reason = "; ".join(problems) or ("every margin is within rounding" if found else "")
    return {
        "verdict": verdict,
        "reason": reason,
        "num_tokens": len(row.output_ids),
        "num_divergent": len(found),
        "divergences": found[:MOST_LISTED],
        "noise": forced.noise,
        "bound": bound,
        **({"logprobs": logprobs} if logprobs else {}),
    }


def _least_lead(row: Row, scores_NV: Tensor) -> float:
    """How far the emitted tokens lead before all others, at least; negative where one does not."""
    if not row.output_ids:
        return -1.0
    tokens_n1 = torch.tensor(row.output_ids)[:, None]
    scores_nV = scores_NV[:-1].double()
    others_nV = scores_nV.scatter(1, tokens_n1, -torch.inf)
    return float((scores_nV.gather(1, tokens_n1)[:, 0] - others_nV.amax(-1)).min())


def _divergences(row: Row, scores_NV: Tensor, bound: float) -> Any:
    """What stands at every token that is not the argmax."""
    if not row.output_ids:
        return
    tokens_n = torch.tensor(row.output_ids)
    scores_nV = scores_NV[:-1].double()
    best_n = argmax(scores_NV[:-1].float())
    own_n1 = scores_nV.gather(1, tokens_n[:, None])
    margins_n = scores_nV.gather(1, best_n[:, None])[:, 0] - own_n1[:, 0]
    ranks_n = (scores_nV > own_n1).sum(-1)
    for place in (tokens_n != best_n).nonzero()[:, 0].tolist():
        margin = float(margins_n[place])
        yield {
            "position": place,
            "token": int(tokens_n[place]),
            "expected": int(best_n[place]),
            "margin": margin,
            "rank": int(ranks_n[place]),
            "kind": NEAR_TIE if margin <= bound else FAILURE,
        }


def _reason(item: dict[str, Any]) -> str:
    return f"the target's margin at token {item['position']} is larger than rounding"


def _logprob_difference(row: Row, forced: Forced, scores_NV: Tensor, rules: GreedyRules) -> dict[str, Any] | None:
    if not row.logprobs:
        return None
    basis_NV = forced.logits_NV if rules.raw_logprobs else scores_NV
    own_n = basis_NV[:-1].double().log_softmax(-1).gather(1, torch.tensor(row.output_ids)[:, None])[:, 0]
    differences_n = (own_n - torch.tensor(row.logprobs, dtype=torch.float64)).abs()
    return {"difference": float(differences_n.max()), "position": int(differences_n.argmax())}


def _ending(row: Row, following: int, rules: GreedyRules) -> list[str]:
    """What is wrong with the row's end. ``following``: the target's token after the last one."""
    stop = next((place for place, token in enumerate(row.output_ids) if token in rules.stop_ids), None)
    length = len(row.output_ids)
    if stop is not None and stop < length - 1:
        return [f"it goes on after the stop token {row.output_ids[stop]} at token {stop}"]
    if rules.max_new_tokens is None or row.text is not None:
        return []
    if length > rules.max_new_tokens:
        return [f"it has {length} tokens, more than --max-new-tokens {rules.max_new_tokens}"]
    if stop is None and length < rules.max_new_tokens and following not in rules.stop_ids:
        return [f"it ends after {length} tokens without a stop token; the target goes on with {following}"]
    return []
