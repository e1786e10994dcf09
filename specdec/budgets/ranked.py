"""What the policies share that give a number of drafted tokens to the slots of the highest scores."""

from __future__ import annotations

from abc import abstractmethod

from specdec.budgets.admission import Queue
from specdec.budgets.base import Budget, Draft, Sequence
from specdec.budgets.costs import RoundSeconds
from specdec.budgets.early_stop import known
from specdec.budgets.slots import Floats, Slots
from specdec.budgets.survival import Survival
from specdec.core.round import Round
from specdec.draft_lengths.profile import Profiler
from specdec.errors import ConfigError

MEMORY = 0.9  # weight of earlier rounds in the derived budget


class RankedBudget(Budget):
    """Keeps the slots of the highest scores.

    Args:
        tokens: drafted tokens of all rows together in a round. None: as many per row as earlier rounds, by measured
            costs and estimated survival, were best with; this round's drafts have no say in it, so it stays exact.
        max_gamma: longest draft profiled; used if ``tokens`` is None.
    """

    reads_certainty = True

    def __init__(self, *, tokens: int | None = None, max_gamma: int = 8) -> None:
        if tokens is not None and tokens < 0:
            raise ConfigError(f"budget.tokens={tokens}: it must be at least 0, or null to derive it from goodput")
        if max_gamma < 1:
            raise ConfigError(f"budget.max_gamma={max_gamma}: it must be at least 1")
        self.tokens = tokens
        self.max_gamma = max_gamma
        self.survival = Survival()
        self.seconds: RoundSeconds | None = None
        self._per_row: float | None = None

    def prepare(self, profiler: Profiler, batch: int) -> None:
        if self.tokens is None:
            self.seconds = RoundSeconds.measured(profiler, batch, self.max_gamma, convex=False)

    def keep(self, rows: list[Sequence], draft: Draft) -> list[int] | None:
        slots, survival_BL = self.survival.of(draft)
        queue = Queue.of(slots, self.scores(slots, survival_BL, draft))
        return queue.depths(len(rows), queue.within(self._num_tokens(queue, slots, survival_BL)))

    def observe(self, outcome: Round) -> None:
        self.survival.observe(outcome)

    @abstractmethod
    def scores(self, slots: Slots, survival_BL: Floats, draft: Draft) -> Floats:
        """(B, L): the higher, the earlier a slot is kept."""

    def _num_tokens(self, queue: Queue, slots: Slots, survival_BL: Floats) -> float:
        if self.tokens is not None:
            return self.tokens
        num_rows = len(slots.nodes_BL)
        num_tokens = float(slots.nodes_BL.sum()) if self._per_row is None else round(self._per_row * num_rows)
        best = int(queue.rates(slots, survival_BL, known(self.seconds), self.ragged).argmax())
        best_per_row = float(queue.tokens_N[:best].sum()) / num_rows
        self._per_row = (
            MEMORY * (best_per_row if self._per_row is None else self._per_row) + (1 - MEMORY) * best_per_row
        )
        return num_tokens
