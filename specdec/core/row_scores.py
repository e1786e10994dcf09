"""Functions of a row's own text that change its scores, such as the logits processors of `transformers`.

Shape letters: B rows, T positions, V vocabulary, n tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.core.round import Draft
    from specdec.core.sequence import Sequence

ScoreChange = Callable[[list[int], Tensor], Tensor]
"""From a row's n tokens and the float32 scores (V) of the next one to changed scores (V)."""


def changed(rows: list[Sequence], draft: Draft, scores_BTV: Tensor) -> Tensor:
    """A round's scores after the rows' own changes; the same tensor if no row has any.

    Column 0 follows the row's last token, column g + 1 follows drafted node g and its ancestors: one call per node, so
    this costs Python for every drafted token.
    """
    changing = [(b, row.change_scores) for b, row in enumerate(rows) if row.change_scores is not None]
    if not changing:
        return scores_BTV
    scores_BTV, vocab_size = scores_BTV.to(torch.float32, copy=True), scores_BTV.shape[-1]
    for b, change in changing:
        text = rows[b].tokens(0)
        for column in range(draft.num_drafted[b] + 1):
            nodes = draft.path(b, column - 1) if column else []
            tokens = [draft.ids[b][node] for node in nodes]
            if all(0 <= token < vocab_size for token in tokens):  # a drafter's probes are no tokens
                scores_BTV[b, column] = change(text + tokens, scores_BTV[b, column])
    return scores_BTV
