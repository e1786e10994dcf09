"""The budget contract: between draft and verify, how much of each row's draft is kept. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from specdec.core.round import Draft
from specdec.core.sequence import Sequence

if TYPE_CHECKING:
    from specdec.core.round import Round
    from specdec.draft_lengths.profile import Profiler

__all__ = ["Budget", "Draft", "Sequence"]


class Budget(ABC):
    """Chooses, for every row of a round, the depth to which its draft is verified; the rest is cut.

    Promise: a row's next-token distribution does not depend on its neighbours' drafts. So whether level k of a row is
    kept may depend on tokens of all rows before level k, on the distributions that level k is drawn from, and on
    anything of earlier rounds; never on the tokens of level k or their own probabilities, nor on how many of several
    independent draws coincide, unless the tokens were chosen and not drawn. What is promised is the distribution:
    which tokens a sampled row emits may still depend on the batch, as with draft_length=goodput.

    A plug-in's constructor gets its settings by keyword, and nothing by position. Its registration declares
    ``reads_clock`` (see `specdec.registry.Entry`). ``python -m specdec.conformance budget=NAME`` checks the promise.
    """

    reads_certainty: bool = False
    """Whether drafters are to report ``Draft.certainty_BG2``, which costs them a pass over the vocabulary per level."""

    ragged: bool = True
    """Whether a target's forward computes no padding; set by the engine."""

    def prepare(self, profiler: Profiler, batch: int) -> None:  # noqa: B027
        """Called before the clock of a run of up to ``batch`` rows starts, for policies that need measured costs."""

    @abstractmethod
    def keep(self, rows: list[Sequence], draft: Draft) -> list[int] | None:
        """The depth to which each row's draft is verified, 0 allowed; None: all of every draft."""

    def observe(self, outcome: Round) -> None:
        """Called after every round. May set ``calibration`` and ``cut_chances`` of the round."""
        return
