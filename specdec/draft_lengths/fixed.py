"""The same draft length in every round."""

from __future__ import annotations

from specdec.core.sequence import Sequence
from specdec.draft_lengths.base import DraftLength
from specdec.errors import ConfigError


class FixedLength(DraftLength):
    """Drafts ``gamma`` tokens per row and round."""

    def __init__(self, *, gamma: int = 5) -> None:
        if gamma < 0:
            raise ConfigError(f"draft_length.gamma={gamma}: it must be 0 or more")
        self.gamma = gamma

    def choose(self, rows: list[Sequence]) -> list[int]:
        return [self.gamma] * len(rows)
