"""How the next token of each row's draft is chosen.

Shape letters: B rows, T = 1 position, G drafted tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.random_numbers import DRAFT, uniforms
from specdec.core.sampling import argmax, draw, penalized, processed, seen_tokens, settings_of
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device


class Picker:
    """Chooses the tokens of one round's drafts, step by step: the argmax, or a draw by the row's own settings.

    A row's draw depends on its seed, its length and the step, so not on its neighbours.
    """

    def __init__(self, rows: list[Sequence]) -> None:
        self._rows = rows
        self._settings = settings_of(rows)
        self._seen_BTV: Tensor | None = None
        self._probs: list[Tensor] = []  # (B, V) per step, where tokens are drawn

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next token of each row (B)."""
        if self._settings is None:
            return argmax(logits_BV)
        scores_BTV = logits_BV[:, None]
        if self._seen_BTV is None:
            self._seen_BTV = seen_tokens(self._rows, None, scores_BTV)
        scores_BTV = penalized(scores_BTV, self._settings, self._seen_BTV)
        if all(params.greedy for params in self._settings):
            tokens_B = argmax(scores_BTV[:, 0])
        else:
            tokens_B = self._draw(processed(scores_BTV, self._settings)[:, 0], self._settings)
        if self._seen_BTV is not None:
            self._seen_BTV.scatter_(-1, tokens_B[:, None, None], True)
        return tokens_B

    def _draw(self, probs_BV: Tensor, settings: list[SamplingParams]) -> Tensor:
        keys = [(params.seed, row.index) for params, row in zip(settings, self._rows, strict=True)]
        noise_B1 = uniforms(keys, [[row.length] for row in self._rows], DRAFT, [len(self._probs)])
        self._probs.append(probs_BV)
        tokens_B = draw(probs_BV, to_device(noise_B1[:, 0], probs_BV.device))
        return tokens_B.clamp(max=probs_BV.shape[-1] - 1)  # NaN draws no token; the verifier reports it

    @property
    def probs_BGV(self) -> Tensor | None:  # noqa: N802
        """The distributions that the tokens were drawn from; None where every token was an argmax."""
        return torch.stack(self._probs, dim=1) if self._probs else None


def top_tokens(scores: Tensor, count: int) -> Tensor:
    """The ids of the ``count`` highest scores, the highest first: (..., V) to (..., count)."""
    return argmax(scores)[..., None] if count == 1 else scores.topk(count, dim=-1).indices
