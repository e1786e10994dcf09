"""A drafter in one file: it proposes the token that followed the last occurrence of the current one.

It needs no model and no cache, only the row's own prompt and output. After

    pip install ./experiments/plugin_drafter
    python -m specdec.conformance drafter=bigram           # proves it, or names the promise it breaks
    python run.py drafter=bigram,model scheduler=exspec -m

it appears beside the built-in drafters in `--help`, in sweeps and in the conformance kit.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from specdec import register
from specdec.core.round import Draft
from specdec.drafters.base import Drafter, Sequence
from specdec.drafters.context import DrafterContext


@register("drafter", "bigram")
class BigramDrafter(Drafter):
    """Follows the bigrams of the row's own prompt and output, until a token without one."""

    def __init__(
        self,
        context: DrafterContext,
        *,  # every parameter from here on is a setting, with its help text: drafter.max_tokens=4
        max_tokens: Annotated[int, "drafted tokens per row and round, at most"] = 8,
    ) -> None:
        self.max_length = max_tokens
        self._device = context.device
        self._followers: dict[int, dict[int, int]] = {}
        self._seen: dict[int, int] = {}

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._followers[row.index], self._seen[row.index] = {}, 0
        self.commit(rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        import torch  # imported late, so that `--help` stays fast

        drafts = []
        for row, gamma in zip(rows, gammas, strict=True):
            chain = row.tokens(row.length - 1)
            while len(chain) <= gamma and chain[-1] in self._followers[row.index]:
                chain.append(self._followers[row.index][chain[-1]])
            drafts.append(chain[1:])
        width = max(map(len, drafts))
        padded = [draft + [0] * (width - len(draft)) for draft in drafts]
        tokens_BG = torch.tensor(padded, dtype=torch.long, device=self._device).reshape(len(rows), width)
        return Draft(tokens_BG, [len(draft) for draft in drafts])

    def commit(self, rows: list[Sequence]) -> None:
        for row in rows:
            tokens = row.tokens(self._seen[row.index])
            self._followers[row.index].update(pairwise(tokens))
            self._seen[row.index] = row.length - 1

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self._followers[row.index], self._seen[row.index]
