"""Early stop: slots of all rows are admitted by survival while expected tokens per second rise.

Sorted by survival, a slot is admitted if the round with it is expected to emit at least as many tokens per second; the
first fall ends the admission. So a slot's admission depends on slots that survive at least as likely, hence on nothing
that its own token decides. The best prefix of the same order does not have that property: see ``global_optimum``.
Source: DSpark, algorithm 1, arXiv 2607.05147; there with a trained confidence head, and costs by total tokens.
"""

from __future__ import annotations

from specdec.budgets.admission import Queue, first_fall
from specdec.budgets.base import Budget, Draft, Sequence
from specdec.budgets.costs import RoundSeconds
from specdec.budgets.survival import Survival
from specdec.core.round import Round
from specdec.draft_lengths.profile import Profiler
from specdec.errors import ConfigError


class EarlyStopBudget(Budget):
    """Admits slots until one lowers the expected tokens per second.

    Args:
        max_gamma: longest draft profiled.
        convex: take the lower convex hull of the measured costs, without which one dear token ends the admission.
    """

    reads_certainty = True

    def __init__(self, *, max_gamma: int = 8, convex: bool = True) -> None:
        if max_gamma < 1:
            raise ConfigError(f"budget.max_gamma={max_gamma}: it must be at least 1")
        self.max_gamma = max_gamma
        self._convex = convex
        self.survival = Survival()
        self.seconds: RoundSeconds | None = None

    def prepare(self, profiler: Profiler, batch: int) -> None:
        self.seconds = RoundSeconds.measured(profiler, batch, self.max_gamma, self._convex)

    def keep(self, rows: list[Sequence], draft: Draft) -> list[int] | None:
        slots, survival_BL = self.survival.of(draft)
        queue = Queue.of(slots, survival_BL)
        rates = queue.rates(slots, survival_BL, known(self.seconds), self.ragged)
        return queue.depths(len(rows), first_fall(rates))

    def observe(self, outcome: Round) -> None:
        self.survival.observe(outcome)


def known(seconds: RoundSeconds | None) -> RoundSeconds:
    """The measured costs; a ConfigError if nothing was measured."""
    if seconds is None:
        raise ConfigError("budget: this policy has no measured costs yet: call prepare() first, or set budget.tokens")
    return seconds
