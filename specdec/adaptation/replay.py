"""In how many rounds finished rows would be decoded, found by drafting them again: for trees, which depend on all their
blocks, so that no single forward over a row tells what they hold.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from specdec.core.sequence import Sequence

if TYPE_CHECKING:
    from specdec.adaptation.served import ServedRow
    from specdec.core.round import Draft
    from specdec.drafters.base import Drafter


class _Replay:
    """One row: what a drafter has been told of it, and its rounds."""

    def __init__(self, number: int, served: ServedRow) -> None:
        given, more = max(served.num_given, 1), served.num_more
        self.served, self.num_told, self.num_rounds = served, 0, 0
        greedy = None if served.sampling is None else replace(served.sampling, temperature=0.0)
        # Negative, so that no row that is being served has the number.
        self.row = Sequence(-1 - number, served.ids[:given], max(len(served.ids) - given, 1) + more, sampling=greedy)

    @property
    def left(self) -> list[int]:
        """The tokens that are still to be decoded."""
        return self.served.ids[self.row.length :]

    def told(self) -> torch.Tensor:
        """(T, H): the hidden states of all tokens but the last that the drafter does not know yet."""
        assert self.served.hidden_TH is not None
        first, self.num_told = self.num_told, self.row.length - 1
        return self.served.hidden_TH[first : self.num_told]


def rounds_replayed(drafter: Drafter, rows: Items[ServedRow], depth: int) -> list[int]:
    """Rounds in which each of these rows is decoded by greedy drafts of at most ``depth`` tokens in a row.

    The drafter must not be in the middle of a round; the rows that it serves are left as they are.
    """
    replays = [_Replay(number, served) for number, served in enumerate(rows)]
    open_ones = [one for one in replays if one.left]
    drafter.admit([one.row for one in open_ones])
    try:
        while open_ones:
            _draft(drafter, open_ones, depth)
            done, open_ones = [one for one in open_ones if not one.left], [one for one in open_ones if one.left]
            drafter.release([one.row for one in done])
            drafter.commit([one.row for one in open_ones])
    finally:
        drafter.release([one.row for one in open_ones])
    return [one.num_rounds for one in replays]


def _draft(drafter: Drafter, replays: list[_Replay], depth: int) -> None:
    """One round."""
    rows = [one.row for one in replays]
    _tell(drafter, replays)
    draft = drafter.propose(rows, [min(depth, row.num_remaining - 1) for row in rows])
    for b, one in enumerate(replays):
        left = one.left
        one.row.emit(left[: num_right(draft, b, left) + 1])
        one.num_rounds += 1


def num_right(draft: Draft, b: int, tokens: list[int]) -> int:
    """How many of these tokens stand one below the other in row b's draft, from its root on."""
    if draft.parents is not None:
        return len(draft.path_of(b, tokens))
    pairs = list(zip(draft.ids[b][: draft.num_drafted[b]], tokens, strict=False))
    return next((place for place, (drafted, token) in enumerate(pairs) if drafted != token), len(pairs))


def _tell(drafter: Drafter, replays: list[_Replay]) -> None:
    """Hidden states of what was decoded since the last round."""
    parts = [(one.row, part) for one in replays if len(part := one.told())]
    if parts:
        rows, hidden = zip(*parts, strict=True)
        hidden_BTH = torch.nn.utils.rnn.pad_sequence(list(hidden), batch_first=True)
        drafter.observe_hidden(list(rows), hidden_BTH, [list(range(len(part))) for part in hidden])
