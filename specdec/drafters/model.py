"""Drafting with a smaller model of the same vocabulary, whose KV cache is aligned like the target's."""

from __future__ import annotations

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.steps import ChainDrafts
from specdec.errors import ConfigError


class ModelDrafter(Drafter):
    """Chain drafts from ``context.draft``, in the row's own way: greedy, or sampled by the row's settings."""

    def __init__(self, context: DrafterContext) -> None:
        if context.draft is None:
            raise ConfigError("drafter=model needs a draft model: set pair.draft, or choose drafter=none")
        self._chains = ChainDrafts(context.draft, context.align(context.draft))

    def admit(self, rows: list[Sequence]) -> None:
        """Nothing is read before it is needed."""

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        """Read prompts ahead of the first draft."""
        self._chains.read(rows, stops)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """One token per step and row."""
        return self._chains.propose(rows, gammas)

    def commit(self, rows: list[Sequence]) -> None:
        """Drop what was drafted beyond the emitted tokens."""
        self._chains.commit(rows)

    def release(self, rows: list[Sequence]) -> None:
        """Forget rows and their cache."""
        self._chains.release(rows)
