"""What rounds tell of a row for nothing: the tokens that the target chose, and the hidden states that a drafter reads.

Shape letters: B rows, T tokens, H the target's hidden states.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device


@dataclass(frozen=True, slots=True)
class ServedRow:
    """The last tokens of a finished row."""

    ids: list[int]  # T
    num_given: int  # how many of them are the prompt's: the target chose the others
    hidden_TH: Tensor | None  # of all but the last token; None: the drafter reads none
    num_more: int = 0  # tokens that it might have emitted beyond, but for a stop
    sampling: SamplingParams | None = None  # its settings


@dataclass(slots=True)
class _Hidden:
    """Hidden states of a row's tokens from one position on."""

    start: int = 0
    parts: deque[Tensor] = field(default_factory=deque)  # (T, H) each
    num_tokens: int = 0

    def add(self, part_TH: Tensor, max_tokens: int) -> None:
        self.parts.append(part_TH)
        self.num_tokens += len(part_TH)
        # A row may stop anywhere in the last part, whose tokens then count for nothing.
        while self.num_tokens - len(self.parts[0]) - len(part_TH) > max_tokens:
            dropped = len(self.parts.popleft())
            self.start, self.num_tokens = self.start + dropped, self.num_tokens - dropped

    def of(self, start: int, stop: int) -> Tensor:
        return torch.cat([*self.parts])[start - self.start : stop - self.start]


class Feedback:
    """Collects rows from ``admit`` to ``release``; only finished rows are taught from.

    So what a row is drafted with was learned from other rows, which had ended before, and depends on none of the
    random numbers that this row uses.

    Args:
        max_tokens: last tokens of a row that are kept.
    """

    def __init__(self, max_tokens: int) -> None:
        self.finished: list[ServedRow] = []
        self._max_tokens = max_tokens
        self._hidden: dict[int, _Hidden] = {}

    def observe_hidden(self, rows: list[Sequence], hidden_BTH: Tensor, kept: list[list[int]]) -> None:
        """Keep what `Drafter.observe_hidden` is told."""
        for b, row in enumerate(rows):
            part_TH = hidden_BTH[b, to_device(kept[b], hidden_BTH.device)]  # a copy
            self._hidden.setdefault(row.index, _Hidden()).add(part_TH, self._max_tokens)

    def release(self, rows: list[Sequence]) -> None:
        """Take over the rows that are finished."""
        for row in rows:
            hidden, start = self._hidden.pop(row.index, None), max(row.length - self._max_tokens, 0)
            if row.finished and row.output_ids:
                num_given = max(len(row.prompt_ids) - start, 0)
                # A round may have accepted tokens past a stop: their hidden states come last, and are left out.
                hidden_TH = None if hidden is None else hidden.of(start, row.length - 1)
                self.finished.append(
                    ServedRow(row.tokens(start), num_given, hidden_TH, row.num_remaining, row.sampling)
                )

    def take(self) -> list[ServedRow]:
        """The rows that were finished since the last call."""
        rows, self.finished = self.finished, []
        return rows
