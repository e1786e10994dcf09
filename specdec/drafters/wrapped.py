"""A drafter that does what another one does, for classes that add something to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.memory import DrafterMemory

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.alignment.base import Alignment

SAID = ("max_length", "siblings", "hidden_layers", "probe_ids", "probes_MD", "reads_cache")
"""What a drafter says of itself."""

TOLD = ("width", "reports_certainty")
"""What the engine tells a drafter before it proposes."""


class WrappedDrafter(Drafter):
    """Passes the whole contract on to ``inner``."""

    def __init__(self, inner: Drafter) -> None:
        self.inner = inner
        for name in SAID:
            setattr(self, name, getattr(inner, name))

    @property
    def memory(self) -> DrafterMemory:
        return self.inner.memory

    def prepare(self, batch: int) -> None:
        self.inner.prepare(batch)

    def attach(self, target: Alignment) -> None:
        self.inner.attach(target)

    def admit(self, rows: list[Sequence]) -> None:
        self.inner.admit(rows)

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        self.inner.read(rows, stops)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        self.inner.observe_hidden(rows, hidden_BTD, kept)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        for name in TOLD:
            setattr(self.inner, name, getattr(self, name))
        return self.inner.propose(rows, gammas)

    def commit(self, rows: list[Sequence]) -> None:
        self.inner.commit(rows)

    def release(self, rows: list[Sequence]) -> None:
        self.inner.release(rows)
