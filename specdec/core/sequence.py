"""A row: one prompt and its output, with explicit lengths; and the pool that schedulers draw rows from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specdec.core.sampling_params import SamplingParams
from specdec.core.stop_strings import StopText

if TYPE_CHECKING:
    from specdec.core.row_scores import ScoreChange

StopWhen = Callable[[list[int]], bool]
"""Whether a row ends with the last of its tokens, prompt included."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One row. Lengths and stop state are kept here and are never inferred from token ids."""

    index: int  # place in the data; identifies the row, and orders the output
    prompt_ids: list[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    sampling: SamplingParams | None = None  # None: greedy
    stop_text: StopText | None = None  # watches for stop strings
    stop_when: StopWhen | None = None  # asked once per emitted token, in order
    change_scores: ScoreChange | None = None  # of the target, before a token is chosen
    output_ids: list[int] = field(default_factory=list)
    stop_reason: str | None = (
        None  # "stop", "stop_string", "criterion" or "length" once finished (lockstep: "truncated")
    )
    accepted_lengths: list[int] = field(default_factory=list)  # accepted drafted tokens, per round of this row
    drafted_lengths: list[int] = field(default_factory=list)  # drafted ones, likewise; of a tree, all its nodes
    num_drafted: int = 0
    num_accepted: int = 0
    arrived_s: float = 0.0
    admitted_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(f"row {self.index}: an empty prompt has no token to continue from")
        if self.max_new_tokens < 1:
            raise ValueError(f"row {self.index}: max_new_tokens must be at least 1, not {self.max_new_tokens}")

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def last_token(self) -> int:
        """The last token of prompt and output."""
        return self.output_ids[-1] if self.output_ids else self.prompt_ids[-1]

    @property
    def num_remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self.max_new_tokens - len(self.output_ids)

    @property
    def finished(self) -> bool:
        """Whether the row has reached a stop token, a stop string or its budget."""
        return self.stop_reason is not None

    def tokens(self, start: int) -> list[int]:
        """Tokens from position ``start`` on, across prompt and output."""
        num_prompt = len(self.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt :]
        return self.prompt_ids[start:] + self.output_ids

    def emit(self, tokens: list[int]) -> list[int]:
        """Append new tokens up to the first stop or the budget; returns those that were kept.

        The stop token itself is kept, and so is the token that completes a stop string, as in
        ``transformers.generate``. Only new tokens are checked: the prompt's do not stop a row.
        """
        kept = [] if self.finished else tokens[: self.num_remaining]
        for place, token in enumerate(kept):
            if token in self.stop_ids:
                self.stop_reason = "stop"
            elif self.stop_text is not None and self.stop_text.push(token):
                self.stop_reason = "stop_string"
            elif self.stop_when is not None and self.stop_when(self.tokens(0) + kept[: place + 1]):
                self.stop_reason = "criterion"
            else:
                continue
            kept = kept[: place + 1]
            break
        self.output_ids += kept
        if self.num_remaining == 0:
            self.stop_reason = self.stop_reason or "length"
        return kept


class SequencePool:
    """All rows of a run: waiting (not yet admitted, in the batching policy's order), active, and finished."""

    def __init__(self, waiting: Iterable[Sequence]) -> None:
        self.waiting: deque[Sequence] = deque(waiting)
        self.active: list[Sequence] = []
        self.finished: list[Sequence] = []

    @property
    def done(self) -> bool:
        """Whether every row is finished."""
        return not self.waiting and not self.active

    def activate(self, count: int) -> list[Sequence]:
        """Move up to ``count`` rows from waiting to active, in order; returns them."""
        moved = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        self.active.extend(moved)
        return moved

    def retire(self) -> list[Sequence]:
        """Move the finished rows from active to finished; returns them."""
        moved = [row for row in self.active if row.finished]
        if moved:
            self.active = [row for row in self.active if not row.finished]
            self.finished.extend(moved)
        return moved


KnownOutput = Callable[[Sequence], list[int] | None]
"""A row's reference output, where it is known: for drafters that replay it, and for explaining differences."""
