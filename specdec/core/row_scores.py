"""Functions of a row's own text that change its scores, such as the logits processors of `transformers`.

Shape letters: B rows, T positions, V vocabulary, n tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec.errors import ConfigError, PairError, SpecdecError

if TYPE_CHECKING:
    from specdec.core.round import Draft
    from specdec.core.sequence import Sequence

ScoreChange = Callable[[list[int], Tensor], Tensor]
"""From a row's n tokens and the float32 scores (V) of the next one to changed scores (V)."""


def changed(rows: list[Sequence], draft: Draft, scores_BTV: Tensor) -> Tensor:
    """A round's scores after the rows' own changes; the same tensor if no row has any.

    Column 0 follows the row's last token, column g + 1 follows drafted node g and its ancestors: one call per node, so
    this costs Python for every drafted token. No change is asked about a text that the row cannot have: one with a
    token of score -inf, or past a stop token. What follows there is never emitted, and its scores stay as they are.
    """
    changing = [(b, row.change_scores) for b, row in enumerate(rows) if row.change_scores is not None]
    if not changing:
        return scores_BTV
    scores_BTV = scores_BTV.to(torch.float32, copy=True)
    for b, change in changing:
        text = rows[b].tokens(0)
        scores_BTV[b, 0] = change(text, scores_BTV[b, 0])
        reached = {-1: text}  # by node; parents come before children
        for node, token in enumerate(draft.ids[b][: draft.num_drafted[b]]):
            parent = draft.parents[b][node] if draft.parents else node - 1
            if parent in reached and _follows(rows[b], token, scores_BTV[b, parent + 1]):
                reached[node] = [*reached[parent], token]
                scores_BTV[b, node + 1] = change(reached[node], scores_BTV[b, node + 1])
    return scores_BTV


def _follows(row: Sequence, token: int, scores_V: Tensor) -> bool:
    """Whether a text may go on past a drafted token, which may be a drafter's probe and no token at all."""
    if not 0 <= token < len(scores_V) or token in row.stop_ids:
        return False
    return float(scores_V[token]) != -math.inf or float(scores_V.max()) == -math.inf  # greedy rows take some token


def no_token(row: Sequence) -> SpecdecError:
    """The error of a row whose scores leave no token to draw."""
    if row.change_scores is None:
        return PairError("NaN among the logits of the target or the draft: try runner.dtype=bfloat16 or float32")
    return ConfigError(
        f"row {row.index}: its logits processors leave no token to draw (all scores are -inf, or one is NaN): "
        "allow more (suppress_tokens, bad_words_ids, logits_processor, prefix_allowed_tokens_fn ...)"
    )
