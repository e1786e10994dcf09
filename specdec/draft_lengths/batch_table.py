"""A table of draft lengths by batch size, profiled once per pair and device.

Idea: the best draft length falls with the batch size, because verifying more tokens stops being free once the device
is busy; for a given pair and device it depends on little else. Powers of two are profiled; a round uses the entry of
the next larger size. An entry of 0 means plain decoding.
Source: Su, Giannoula, Pekhimenko 2023, arXiv 2310.18813.
"""

from __future__ import annotations

from specdec.core.sequence import Sequence
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.profile import Profile, Profiler, best_gammas
from specdec.errors import ConfigError


class BatchTableLength(DraftLength):
    """Looks up the profiled gamma for the round's number of rows.

    Args:
        max_gamma: longest draft profiled.
    """

    def __init__(self, *, max_gamma: int = 8) -> None:
        if max_gamma < 1:
            raise ConfigError(f"draft_length.max_gamma={max_gamma}: it must be at least 1")
        self.max_gamma = max_gamma
        self.table: dict[int, int] = {}

    def prepare(self, profiler: Profiler, batch: int) -> None:
        profile = Profile(profiler)
        made = profile.complete(batch, self.max_gamma)
        self.table = best_gammas(profile.of(batch, self.max_gamma))
        if made:
            described = ", ".join(f"{size}: {gamma}" for size, gamma in sorted(self.table.items()))
            print(f"note: draft length by batch size, profiled now: {described} ({profile.path})", flush=True)

    def choose(self, rows: list[Sequence]) -> list[int]:
        if not self.table:
            raise ConfigError("draft_length=batch_table has no table yet: call prepare() first")
        sizes = sorted(self.table)
        size = next((size for size in sizes if size >= len(rows)), sizes[-1])
        self.drafting = self.table[size] > 0
        return [self.table[size]] * len(rows)
