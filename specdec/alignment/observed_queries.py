"""Which query of a model was a given token, and whether its position and the columns it sees are correct.

Shape letters: Q tokens of a row to be found, P tokens that the row holds, M rows of a forward, T tokens, S columns,
E size of a key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.alignment.observation import Observed

EXPECTED = {
    "position": "the number of tokens before it",
    "visibility": "its row's own tokens before it and itself, once each",
}
Problem = tuple[str, str]  # the broken promise, and what was found


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tokens of a row that must have been fed, and the tokens that each must have seen."""

    tokens: list[int]
    positions: list[int]
    expected_QP: Tensor  # bool: which of the row's tokens each sees
    keys_PE: Tensor  # the first layer's key of each of the row's tokens
    tolerance: float


def problems(wanted: Wanted, candidates: list[tuple[Observed, int]]) -> dict[int, Problem]:
    """Problems by index into the wanted tokens; a token that some query matches in full has none."""
    unmet: dict[int, Problem | None] = dict.fromkeys(range(len(wanted.tokens)))
    for observed, m in candidates:
        if not unmet:
            break
        same_SP = _same(observed.keys_MSE[m], wanted.keys_PE, wanted.tolerance)
        given_tokens, given_positions = observed.tokens_MT[m].tolist(), observed.positions_MT[m].tolist()
        for query in list(unmet):
            for t, token in enumerate(given_tokens):
                if token != wanted.tokens[query]:
                    continue
                problem = _position(wanted.positions[query], given_positions[t]) or _visibility(
                    wanted.expected_QP[query], observed.mask_MTS[m, t], same_SP
                )
                if problem is None:
                    del unmet[query]
                    break
                unmet[query] = _likelier(unmet[query], problem)
    never = [("position", f"token {token} never fed") for token in wanted.tokens]
    return {query: problem or never[query] for query, problem in unmet.items()}


def own_first(seen: list[Observed], b: int) -> list[tuple[Observed, int]]:
    """All rows of all forwards, those at row b's own place first: a strategy may reorder or copy rows."""
    pairs = [(observed, m) for observed in seen for m in range(len(observed.tokens_MT))]
    return sorted(pairs, key=lambda pair: pair[1] != b)


def _likelier(known: Problem | None, problem: Problem) -> Problem:
    """The problem to report for a token fed in several places: the first, or one whose position is correct."""
    if known is None or (known[0] == "position" and problem[0] == "visibility"):
        return problem
    return known


def _position(expected: int, given: int) -> Problem | None:
    return None if given == expected else ("position", f"position id {given}")


def _visibility(expected_P: Tensor, mask_S: Tensor, same_SP: Tensor) -> Problem | None:
    seen_P = (same_SP & mask_S[:, None]).any(0)
    if missing := (expected_P & ~seen_P).nonzero().flatten().tolist():
        return "visibility", f"token {missing[0]} of the row is not seen"
    foreign_S = mask_S & ~(same_SP & expected_P).any(1)
    if foreign := foreign_S.nonzero().flatten().tolist():
        return "visibility", f"column {foreign[0]} is seen and holds none of them"
    if int(mask_S.sum()) != int(expected_P.sum()):
        return "visibility", f"{int(mask_S.sum())} columns are seen instead of {int(expected_P.sum())}"
    return None


def _same(keys_SE: Tensor, keys_PE: Tensor, tolerance: float) -> Tensor:
    """(S, P) bool: which column holds which token's key."""
    found, wanted = keys_SE.double().nan_to_num(), keys_PE.double()
    return torch.cdist(found, wanted, p=float("inf")) <= tolerance * wanted.abs().max()
