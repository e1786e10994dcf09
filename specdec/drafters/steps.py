"""Chain drafts from a causal model, one forward per token: what the drafters with a model share.

Shape letters: B rows, T tokens fed, G drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.layout import padded
from specdec.alignment.reader import Reader
from specdec.core.random_numbers import DRAFT, uniforms
from specdec.core.round import Draft
from specdec.core.sampling import draw, penalized, processed, seen_tokens, settings_of
from specdec.core.sequence import Sequence
from specdec.models.causal_lm import CausalLM

LAG = 2
MAX_TOGETHER = 8
"""Tokens that a row may lack for its first step to feed them; more are read in a forward of their own."""


class Picker:
    """Chooses each next token of a draft: the argmax, or a draw by the row's own settings from a law that is kept."""

    def __init__(self, rows: list[Sequence]) -> None:
        settings = settings_of(rows)
        self._settings = settings
        self._rows = rows
        self._samples = settings is not None and not all(s.greedy for s in settings)
        self._seen_BTV: Tensor | None = None
        self._laws: list[Tensor] = []

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The tokens (B) that follow."""
        scores_BTV = logits_BV[:, None]
        if self._settings is None:
            return logits_BV.argmax(-1)
        if self._seen_BTV is None:
            self._seen_BTV = seen_tokens(self._rows, None, scores_BTV)
        scores_BTV = penalized(scores_BTV, self._settings, self._seen_BTV)
        tokens_B = self._draw(scores_BTV) if self._samples else scores_BTV[:, 0].argmax(-1)
        if self._seen_BTV is not None:
            self._seen_BTV.scatter_(-1, tokens_B[:, None, None], True)
        return tokens_B

    def _draw(self, scores_BTV: Tensor) -> Tensor:
        assert self._settings is not None
        law_BV = processed(scores_BTV, self._settings)[:, 0]
        keys = [(s.seed, row.index) for s, row in zip(self._settings, self._rows, strict=True)]
        noise_B1 = uniforms(keys, [[row.length] for row in self._rows], DRAFT, [len(self._laws)])
        self._laws.append(law_BV)
        tokens_B = draw(law_BV, noise_B1[:, 0].to(law_BV.device))
        return tokens_B.clamp(max=law_BV.shape[-1] - 1)  # NaN draws no token; the verifier then finds it in the law

    @property
    def probs_BGV(self) -> Tensor | None:  # noqa: N802
        """The laws that were drawn from; None where every token was an argmax."""
        return torch.stack(self._laws, dim=1) if self._laws else None


def extend(
    alignment: Alignment,
    device: torch.device,
    keys: list[int],
    missing: list[list[int]],
    gammas: list[int],
    pick: Callable[[Tensor], Tensor],
) -> Tensor:
    """Feed what each row's cache lacks and draft ``gammas[b]`` tokens behind it; returns them (B, G).

    A row whose draft is long enough (or empty from the start) feeds nothing more.
    """
    num_steps = max(gammas, default=0)
    if num_steps == 0:
        return torch.zeros(len(keys), 0, dtype=torch.long, device=device)
    missing = [tokens if gamma else [] for tokens, gamma in zip(missing, gammas, strict=True)]
    counts = [len(tokens) for tokens in missing]
    logits_BTV = alignment.forward(keys, padded(missing, device), counts)
    last_B = torch.tensor(counts, device=device).clamp(min=1) - 1
    steps = [pick(logits_BTV[torch.arange(len(keys), device=device), last_B])]
    for step in range(1, num_steps):
        counts = [int(gamma > step) for gamma in gammas]
        logits_BTV = alignment.forward(keys, steps[-1][:, None], counts)
        steps.append(pick(logits_BTV[:, -1]))
    return torch.stack(steps, dim=1)


class ChainDrafts:
    """Drafts of one model that reads the same tokens as the target, with a KV cache that lags behind the rows.

    The cache of a row that drafts always lags behind the row by its last two tokens, which the first step of a round
    feeds together. After full acceptance the last drafted token was never fed, so some rows miss two tokens and others
    one; cutting all of them back to the same lag keeps every round's shape equal at the price of one token in one
    forward. A row that does not draft costs nothing: its cache stays behind, and is read on when the row drafts again.
    Source: Leviathan et al. 2023 (drafting); the lag is described for batches in arXiv 2510.22876, "KV cache".
    """

    def __init__(self, model: CausalLM, alignment: Alignment) -> None:
        self._device = model.device
        self._alignment = alignment
        self._reader = Reader(alignment)
        self._fed: list[Sequence] = []  # rows that this round fed with everything they had, and their drafts

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        """Read prompts up to ``stops``, but for the rows' last tokens."""
        self._reader.read(rows, [_settled(row, stop) for row, stop in zip(rows, stops, strict=True)])

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Draft a chain per row: greedily, or drawn by the row's sampling settings."""
        drafting = [row for row, gamma in zip(rows, gammas, strict=True) if gamma]
        behind = [row for row in drafting if row.length - self._reader.length(row) > MAX_TOGETHER]
        if behind:
            self._reader.read(behind, [_settled(row, row.length) for row in behind])
        # Leaving a few rows out of the forwards would leave idle slots between the others, and save nothing.
        fed = rows if 2 * len(drafting) > len(rows) and all(map(self._reader.admitted, rows)) else drafting
        new = [row for row in fed if not self._reader.admitted(row)]
        if new:
            self._reader.read(new, [0] * len(new))
        places = [b for b, row in enumerate(rows) if row in fed]
        keys = [row.index for row in fed]
        missing = [row.tokens(self._reader.length(row)) for row in fed]
        pick = Picker(fed)
        tokens_FG = extend(self._alignment, self._device, keys, missing, [gammas[b] for b in places], pick)
        self._fed = drafting
        if fed is rows:
            return Draft(tokens_FG, list(gammas), probs_BGV=pick.probs_BGV)
        probs_FGV = pick.probs_BGV
        return Draft(
            _spread(tokens_FG, places, len(rows)),
            list(gammas),
            probs_BGV=None if probs_FGV is None else _spread(probs_FGV, places, len(rows)),
        )

    def commit(self, rows: list[Sequence]) -> None:
        """Cut every row that has drafted back to its lag behind what was emitted."""
        fed = [row for row in self._fed if not row.finished]
        if fed:
            kept: list[Kept] = [_settled(row, row.length) for row in fed]
            self._alignment.commit([row.index for row in fed], kept)
        self._fed = []

    def release(self, rows: list[Sequence]) -> None:
        """Forget rows and their cache."""
        self._reader.release(rows)


def _settled(row: Sequence, stop: int) -> int:
    """Tokens of a row's first ``stop`` that its cache holds between rounds."""
    return max(min(stop, row.length - LAG), 0)


def _spread(part: Tensor, places: list[int], num_rows: int) -> Tensor:
    """The rows of ``part`` at their places among all rows; zeros elsewhere."""
    whole = part.new_zeros(num_rows, *part.shape[1:])
    whole[torch.tensor(places, dtype=torch.long, device=part.device)] = part
    return whole
