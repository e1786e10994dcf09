"""The keys and values that a drafter which steps by a model drafts with: its own, or the target's own.

The cache of a drafter's own lacks a row's last two tokens between rounds, which the first step of a round feeds
together. After full acceptance the last drafted token was never fed, so some rows lack two tokens and others one;
cutting all of them back to two keeps the shapes of every round equal, for one more token in one forward. A row that
does not draft costs nothing: its cache is left as it is, and catches up when the row drafts again.
Source: Leviathan et al. 2023 (drafting); the lag is described for batches in arXiv 2510.22876, "KV cache".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from specdec.alignment.base import Admitted, Alignment, Kept
from specdec.alignment.reader import Reader
from specdec.alignment.windowed import WindowedAlignment
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.memory import DrafterMemory
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.masks import FULL
from specdec.models.sparse_view import SparseView

LAG = 2  # tokens that a cache of the drafter's own lacks of a row that drafts between rounds
MAX_TOGETHER = 8  # a row that lacks at most so many catches up in its first drafting step, others in a forward before


@dataclass(frozen=True, slots=True)
class FedRow:
    """What the cache of a row was fed in a round: tokens that it lacked, then nodes of the row's draft."""

    row: Sequence
    length: int  # of the row, before the round
    num_missing: int
    draft: Draft
    place: int  # of the row in the draft
    fed_nodes: list[int] | None  # the number of each node among the tokens fed; None: the draft is a chain

    def kept(self) -> Kept:
        """What a commit keeps: the row's tokens up to the lag. Of an accepted path it is found by its tokens."""
        settled = _settled(self.row, self.row.length)
        if self.fed_nodes is None:
            return settled
        accepted = self.row.tokens(self.length)[:-LAG]  # each of these has an accepted child, so it was fed
        path = self.draft.path_of(self.place, accepted)
        nodes = [*range(self.num_missing), *[self.fed_nodes[node] for node in path]]
        return nodes[: settled - (self.length - self.num_missing)]


class DraftCache(ABC):
    """What a drafter feeds, and what is left of it after the round."""

    alignment: Alignment

    @property
    @abstractmethod
    def memory(self) -> DrafterMemory:
        """As in `Drafter`."""

    def view(self, num_fed: int) -> SparseView | None:
        """What queries see of their rows in a round that feeds up to so many tokens of each; by default all."""
        return None

    @abstractmethod
    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        """As in `Drafter`."""

    @abstractmethod
    def ready(self, rows: list[Sequence], drafting: list[Sequence]) -> list[Sequence]:
        """Prepare a round; returns the rows to name in its forwards: those that draft, or all."""

    @abstractmethod
    def missing(self, row: Sequence) -> list[int]:
        """Tokens that a row lacks, which its first step feeds."""

    @abstractmethod
    def drafted(self, fed: list[FedRow]) -> None:
        """The draft is complete: called before the target verifies it."""

    @abstractmethod
    def commit(self) -> None:
        """The rows' emitted tokens are final."""

    @abstractmethod
    def release(self, rows: list[Sequence]) -> None:
        """Free the rows' state."""


class OwnCache(DraftCache):
    """The drafter's own cache in an alignment."""

    def __init__(self, alignment: Alignment) -> None:
        self.alignment = alignment
        self._reader = Reader(alignment)
        self._fed: list[FedRow] = []  # rows that drafted in this round: their caches hold parts of their drafts

    @property
    def memory(self) -> DrafterMemory:
        bounded = isinstance(self.alignment, WindowedAlignment)
        return DrafterMemory(self.alignment.model, type(self.alignment) if bounded else None)

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        self._reader.read(rows, [_settled(row, stop) for row, stop in zip(rows, stops, strict=True)])

    def ready(self, rows: list[Sequence], drafting: list[Sequence]) -> list[Sequence]:
        """Rows that lack much are read first."""
        late = [row for row in drafting if row.length - self._reader.length(row) > MAX_TOGETHER]
        if late:
            self._reader.read(late, [_settled(row, row.length) for row in late])
        fed = rows if all(map(self._reader.admitted, rows)) and most(drafting, rows) else drafting
        new = [row for row in fed if not self._reader.admitted(row)]
        if new:
            self._reader.read(new, [0] * len(new))
        return fed

    def missing(self, row: Sequence) -> list[int]:
        return row.tokens(self._reader.length(row))

    def drafted(self, fed: list[FedRow]) -> None:
        self._fed = fed

    def commit(self) -> None:
        fed = [of_row for of_row in self._fed if not of_row.row.finished]
        if fed:
            self.alignment.commit([of_row.row.index for of_row in fed], [of_row.kept() for of_row in fed])
        self._fed = []

    def release(self, rows: list[Sequence]) -> None:
        self._reader.release(rows)


class TargetCache(DraftCache):
    """A sparse view of the target's own cache: a draft's columns follow the row's, and are dropped before verification.

    Nothing is kept per row, and what the draft sees was computed by the target for the row's own tokens.
    Source: Sadhukhan et al. 2024, arXiv 2408.11049 (MagicDec), with a window and sinks.
    """

    def __init__(self, window: int, sinks: int) -> None:
        self._window, self._sinks = window, sinks

    @property
    def memory(self) -> DrafterMemory:
        return DrafterMemory(self.alignment.model, _NoColumns)

    def view(self, num_fed: int) -> SparseView:
        return SparseView(self._window, self._sinks, num_fed)

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        """The target has read them."""

    def ready(self, rows: list[Sequence], drafting: list[Sequence]) -> list[Sequence]:
        return rows if most(drafting, rows) else drafting

    def missing(self, row: Sequence) -> list[int]:
        return row.tokens(self.alignment.length(row.index))

    def drafted(self, fed: list[FedRow]) -> None:
        rows = [of_row.row.index for of_row in fed]
        self.alignment.commit(rows, [self.alignment.length(row) for row in rows])

    def commit(self) -> None:
        """The target's own commit is all."""

    def release(self, rows: list[Sequence]) -> None:
        """The target's own release is all."""


class _NoColumns(Alignment):
    """The alignment of a cache that takes no columns of its own, for the prediction of memory."""

    @classmethod
    def kept_columns(cls, rows: Admitted) -> float:
        return 0

    @classmethod
    def moved_columns(cls, rows: Admitted) -> float:
        return 0


def check_windowed(model: CausalLM, role: str) -> None:
    """Refuse a window over what is bounded anyway.

    Raises:
        ConfigError: naming the setting.
    """
    if model.recurrent:
        raise ConfigError(f"drafter.window: the {role} keeps recurrent states, whose size is constant; leave it out")
    if model.architecture.mask_form.widest != FULL or model.architecture.mask_form.by_type:
        raise ConfigError(f"drafter.window: the {role} has windows or chunks of its own; leave it out")


def most(drafting: list[Sequence], rows: list[Sequence]) -> bool:
    """Leaving a few rows out of the forwards would leave idle slots between the others, and save nothing."""
    return 2 * len(drafting) > len(rows)


def _settled(row: Sequence, stop: int) -> int:
    """How many of a row's first ``stop`` tokens a cache of the drafter's own holds between rounds."""
    return max(min(stop, row.length - LAG), 0)
