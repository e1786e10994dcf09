"""A drafter that learns from finished rows while it serves.

Updates come before a round's drafts are made, and depend on rows that had ended. So the distribution that a row's
tokens are drafted from is fixed by what was known before the round, none of which depends on the random numbers that
the row uses from there on: a lossless verifier emits the target's distribution, and greedy rows their own tokens. Which
of its random numbers a sampled row uses for what depends on the drafts, hence on other rows: its distribution is the
same beside any neighbours, its tokens are not (with verifier=naive they are).
"""

from __future__ import annotations

from torch import Tensor

from specdec.adaptation.learner import Learner
from specdec.adaptation.policies import Policy, Window
from specdec.adaptation.served import Feedback
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.wrapped import WrappedDrafter


class AdaptingDrafter(WrappedDrafter):
    """Drafts what ``inner`` drafts, whose weights ``learner`` updates when ``policy`` says so.

    Args:
        rows: finished rows of a window, at least.
        max_tokens: last tokens of a row that are learned from.
    """

    def __init__(
        self, inner: Drafter, learner: Learner, policy: Policy, clock: Clock, *, rows: int, max_tokens: int
    ) -> None:
        super().__init__(inner)
        self.learner, self.policy = learner, policy
        self._clock, self._rows, self._feedback = clock, rows, Feedback(max_tokens)
        self._rates: list[float] = []  # tokens per round, of the finished rows
        self._until_s = 0.0  # seconds of the clock's stages up to the end of the last window

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        self._feedback.observe_hidden(rows, hidden_BTD, kept)
        super().observe_hidden(rows, hidden_BTD, kept)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        learned = self._learn() if len(self._feedback.finished) >= self._rows else None
        draft = super().propose(rows, gammas)
        draft.learned = learned
        return draft

    def release(self, rows: list[Sequence]) -> None:
        self._rates += [len(row.output_ids) / len(row.accepted_lengths) for row in rows if row.accepted_lengths]
        self._feedback.release(rows)
        super().release(rows)

    def _learn(self) -> tuple[str, float]:
        """The arm that is updated, "none" if none is, and the seconds that it took."""
        rows, clock = self._feedback.take(), self._clock
        with clock.stage("draft"):
            start_s = sum(clock.seconds.values())
            window = Window(len(rows), start_s - self._until_s, self._rates)
            if self.policy.measures:
                self.policy.measured(self.learner.num_rounds(rows, before=True), self.learner.num_rounds(rows))
            arm = self.policy.choose(window)
            if self.policy.rejects:
                self.learner.restore()
            if arm is not None:
                if self.policy.marks:
                    self.learner.mark()
                self.learner.update(arm, rows)
        self._until_s, self._rates = sum(clock.seconds.values()), []
        self.policy.spent(self._until_s - start_s)
        return arm or "none", self._until_s - start_s
