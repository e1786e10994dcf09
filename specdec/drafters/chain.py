"""Chain drafts from a causal model, one forward per drafted token.

Shape letters: B rows, F rows that are fed, T tokens fed, G drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.layout import padded
from specdec.alignment.reader import Reader
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.picker import Picker
from specdec.models.causal_lm import CausalLM

LAG = 2  # tokens that the cache of a row that drafts lacks between rounds
MAX_TOGETHER = 8  # a row that lacks at most so many catches up in its first drafting step, others in a forward before


class ChainDrafter(Drafter):
    """Drafts with one model that reads the same tokens as the target, with each row's sampling settings.

    Between rounds the cache of a row that drafts lacks the row's last two tokens, which the first step of a round feeds
    together. After full acceptance the last drafted token was never fed, so some rows lack two tokens and others one;
    cutting all of them back to two keeps the shapes of every round equal, for one more token in one forward. A row that
    does not draft costs nothing: its cache is left as it is, and catches up when the row drafts again.
    Source: Leviathan et al. 2023 (drafting); the lag is described for batches in arXiv 2510.22876, "KV cache".
    """

    def __init__(self, model: CausalLM, alignment: Alignment) -> None:
        self._device = model.device
        self._alignment = alignment
        self._reader = Reader(alignment)
        self._fed: list[Sequence] = []  # rows that drafted in this round: their caches hold parts of their drafts

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        self._reader.read(rows, [_settled(row, stop) for row, stop in zip(rows, stops, strict=True)])

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        drafting = [row for row, gamma in zip(rows, gammas, strict=True) if gamma]
        late = [row for row in drafting if row.length - self._reader.length(row) > MAX_TOGETHER]
        if late:
            self._reader.read(late, [_settled(row, row.length) for row in late])
        # Leaving a few rows out of the forwards would leave idle slots between the others, and save nothing.
        fed = rows if 2 * len(drafting) > len(rows) and all(map(self._reader.admitted, rows)) else drafting
        new = [row for row in fed if not self._reader.admitted(row)]
        if new:
            self._reader.read(new, [0] * len(new))
        places = [b for b, gamma in enumerate(gammas) if gamma or fed is rows]
        keys = [row.index for row in fed]
        missing = [row.tokens(self._reader.length(row)) for row in fed]
        pick = Picker(fed)
        tokens_FG = extend(self._alignment, self._device, keys, missing, [gammas[b] for b in places], pick)
        self._fed = drafting
        probs_FGV = pick.probs_BGV
        probs_BGV = None if probs_FGV is None else _spread(probs_FGV, places, len(rows))
        return Draft(_spread(tokens_FG, places, len(rows)), list(gammas), probs_BGV=probs_BGV)

    def commit(self, rows: list[Sequence]) -> None:
        fed = [row for row in self._fed if not row.finished]
        if fed:
            kept: list[Kept] = [_settled(row, row.length) for row in fed]
            self._alignment.commit([row.index for row in fed], kept)
        self._fed = []

    def release(self, rows: list[Sequence]) -> None:
        self._reader.release(rows)


def extend(
    alignment: Alignment,
    device: torch.device,
    keys: list[int],
    missing: list[list[int]],
    gammas: list[int],
    pick: Callable[[Tensor], Tensor],
) -> Tensor:
    """Feed what each row's cache lacks, then draft ``gammas[b]`` tokens after it; returns them (B, G).

    A row whose draft is complete (or empty from the start) feeds nothing more.
    """
    num_steps = max(gammas, default=0)
    if num_steps == 0:
        return torch.zeros(len(keys), 0, dtype=torch.long, device=device)
    missing = [tokens if gamma else [] for tokens, gamma in zip(missing, gammas, strict=True)]
    counts = [len(tokens) for tokens in missing]
    logits_BTV = alignment.forward(keys, padded(missing, device), counts)
    steps = [pick(_last(logits_BTV, counts))]
    for step in range(1, num_steps):
        counts = [int(gamma > step) for gamma in gammas]
        logits_BTV = alignment.forward(keys, steps[-1][:, None], counts)
        steps.append(pick(logits_BTV[:, -1]))
    return torch.stack(steps, dim=1)


def _last(logits_BTV: Tensor, counts: list[int]) -> Tensor:
    """(B, V): of each row's last fed token; of any token, if it was fed none."""
    if min(counts) == logits_BTV.shape[1]:
        return logits_BTV[:, -1]
    device = logits_BTV.device
    return logits_BTV[torch.arange(len(counts), device=device), to_device(counts, device).clamp(min=1) - 1]


def chosen_chains(chains: list[list[int]], device: torch.device) -> Draft:
    """One chain of tokens per row, chosen and not drawn: a draft without probabilities."""
    return Draft(padded(chains, device), [len(chain) for chain in chains])


def _settled(row: Sequence, stop: int) -> int:
    """How many of a row's first ``stop`` tokens its cache holds between rounds."""
    return max(min(stop, row.length - LAG), 0)


def _spread(part: Tensor, places: list[int], num_rows: int) -> Tensor:
    """The rows of ``part`` at their places among all rows; zeros elsewhere."""
    if len(places) == num_rows:
        return part
    whole = part.new_zeros(num_rows, *part.shape[1:])
    whole[to_device(places, part.device, torch.long)] = part
    return whole
