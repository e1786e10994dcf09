"""Drafts of some of a round's rows as drafts of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.round import Draft
from specdec.core.transfer import to_device


def spread(draft: Draft, places: list[int], num_rows: int) -> Draft:
    """A draft of some rows as one of all rows, in which the others draft nothing."""
    if len(places) == num_rows:
        return draft
    counts = dict(zip(places, draft.num_drafted, strict=True))
    at = to_device(places, draft.tokens_BG.device, torch.long)

    def lists(part: list[list[int]] | None) -> list[list[int]] | None:
        known = dict(zip(places, part or (), strict=False))
        return None if part is None else [known.get(b, []) for b in range(num_rows)]

    def whole(part: Tensor) -> Tensor:
        return part.new_zeros(num_rows, *part.shape[1:]).index_copy_(0, at, part)

    return Draft(
        whole(draft.tokens_BG),
        [counts.get(b, 0) for b in range(num_rows)],
        lists(draft.parents),
        None if draft.probs_BGV is None else whole(draft.probs_BGV),
        lists(draft.draws),
        certainty_BG2=None if draft.certainty_BG2 is None else whole(draft.certainty_BG2),
        chances_BG=None if draft.chances_BG is None else whole(draft.chances_BG),
    )
