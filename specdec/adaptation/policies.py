"""When a drafter is updated: never, always, or where the expected gain pays for the update. Imports no torch.

Time is cut into *windows* of a number of finished rows. After each of them a policy chooses an arm to update, or none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from specdec.adaptation.drift import Drift

UPDATES = 8  # of a trial, one per window
GUESSED_WINDOWS = 1.0  # serving time of so many windows: what an update costs before one was measured
OLD_TRIALS = 2.0  # the variance of earlier trials of an arm is raised by this factor when a new one is added


@dataclass(frozen=True, slots=True)
class Window:
    """What was served since the last choice."""

    num_rows: int
    serving_s: float  # of all stages, without learning
    tokens_per_round: Sequence[float]  # of each finished row: what it emitted per round


class Policy(ABC):
    """Chooses an arm after each window."""

    def __init__(self, arms: Sequence[str]) -> None:
        self.arms = tuple(arms)

    measures: bool = False
    """Whether it needs to know what the rows of this window would have cost before and after its updates."""

    marks: bool = False
    """Whether the weights before the update just chosen are those that later windows are compared with."""

    rejects: bool = False
    """Whether those weights are to be served again, because what was learned since then saves nothing."""

    @abstractmethod
    def choose(self, window: Window) -> str | None:
        """The arm to update with the window's rows; None: none."""

    def measured(self, before: Sequence[int], now: Sequence[int]) -> None:  # noqa: B027
        """Rounds of each of a window's rows with the marked weights, and with those of now; before ``choose``."""

    def spent(self, seconds: float) -> None:  # noqa: B027
        """What measuring and updating took in this window; after ``choose``."""


class Always(Policy):
    """Updates the last arm, which is the most of the drafter, after every window."""

    def choose(self, window: Window) -> str | None:
        return self.arms[-1]


@dataclass(slots=True)
class _Arm:
    """What is known of an arm."""

    cost_s: float | None = None  # of an update, with its measurements
    gain: float | None = None  # share of all rounds that one more update saves
    variance: float = 0.0

    def add(self, gain: float, variance: float) -> None:
        """One more trial; earlier ones count for less."""
        if self.gain is None:
            self.gain, self.variance = gain, variance
            return
        weight_old, weight_new = 1 / max(OLD_TRIALS * self.variance, 1e-12), 1 / max(variance, 1e-12)
        self.gain = (weight_old * self.gain + weight_new * gain) / (weight_old + weight_new)
        self.variance = 1 / (weight_old + weight_new)


@dataclass(slots=True)
class _Trial:
    """Updates of one arm in a row, and savings of rows that were not learned: (updates before it, share of a row)."""

    arm: str
    explores: bool
    num_updates: int = 0
    seconds: float = 0.0
    savings: list[tuple[int, float]] = field(default_factory=list)

    def estimate(self) -> tuple[float, float]:
        """Gain per update and its variance: least squares through the origin, as the first update saves as much as the
        next."""
        squares = sum(n * n for n, _ in self.savings)
        gain = sum(n * saved for n, saved in self.savings) / squares
        residual = sum((saved - gain * n) ** 2 for n, saved in self.savings) / max(len(self.savings) - 1, 1)
        return gain, residual / squares


class Bandit(Policy):
    """Updates the arm whose gain, over what is left of the present kind of rows, exceeds its cost.

    A trial is a few updates of one arm. Its gain is measured in pairs: in how many rounds greedy drafts would have
    decoded the next rows, which no weights have learned yet, with the weights before the trial and with those of now.
    An update saves a share of the serving time of all later rows of the same kind. Arms that pay even if their gain is
    a standard error lower are updated. Otherwise an arm that may pay is tried if trials have taken less than
    ``trial_share`` of the time. What a trial has learned is dropped if it saves nothing. If rows suddenly accept less,
    all gains are forgotten.
    Source: the idea of SpecBlock's cost-aware bandit (arXiv 2605.07243), whose abstract is all that is published of it;
    the estimates are this project's own.

    Args:
        horizon: rows for which what is learned stays useful; None: as many as have come since the last drift, the
            expected rest of something of which only the age is known.
        trial_share: of the time, for trials that are not known to pay.
    """

    def __init__(self, arms: Sequence[str], *, horizon: int | None, trial_share: float) -> None:
        super().__init__(arms)
        self._horizon, self._share = horizon, trial_share
        self._arms = {arm: _Arm() for arm in arms}
        self._drift = Drift()
        self._trial: _Trial | None = None
        self.rejects = False
        self._elapsed_s = self._explored_s = 0.0
        self._windows: list[tuple[int, float]] = []  # rows and serving seconds, since the last drift

    @property
    def measures(self) -> bool:  # type: ignore[override]
        """In the second half of a trial, where the gain is large compared with the noise."""
        return self._trial is not None and self._trial.num_updates > UPDATES // 2

    @property
    def marks(self) -> bool:  # type: ignore[override]
        return self._trial is not None and self._trial.num_updates == 1

    def measured(self, before: Sequence[int], now: Sequence[int]) -> None:
        assert self._trial is not None
        usual, number = fmean(before), self._trial.num_updates
        self._trial.savings += [(number, (b - n) / usual) for b, n in zip(before, now, strict=True)]

    def choose(self, window: Window) -> str | None:
        self.rejects = False
        self._elapsed_s += window.serving_s
        self._windows.append((window.num_rows, window.serving_s))
        if self._drift.happened(window.tokens_per_round):
            self._forget(window)
        if self._trial is not None and self._trial.num_updates == UPDATES:
            self._close(self._trial)
        if self._trial is None:
            self._trial = self._next()
        if self._trial is None:
            return None
        self._trial.num_updates += 1
        return self._trial.arm

    def spent(self, seconds: float) -> None:
        self._elapsed_s += seconds
        if self._trial is not None:
            self._trial.seconds += seconds
            if self._trial.explores:
                self._explored_s += seconds

    def _forget(self, window: Window) -> None:
        self._windows = [(window.num_rows, window.serving_s)]
        self.rejects = self._trial is not None  # it may be what has made them accept less
        self._trial = None
        for arm in self._arms.values():
            arm.gain = None

    def _close(self, trial: _Trial) -> None:
        arm, (gain, variance) = self._arms[trial.arm], trial.estimate()
        arm.add(gain, variance)
        self.rejects = gain <= 0
        arm.cost_s = trial.seconds / UPDATES
        self._trial = None

    def _next(self) -> _Trial | None:
        paying = [name for name, arm in self._arms.items() if self._worth(arm, -1) > 0]
        if paying:
            return _Trial(max(paying, key=lambda name: self._worth(self._arms[name], 0)), explores=False)
        hopeful = [name for name, arm in self._arms.items() if arm.gain is None or self._worth(arm, 1) > 0]
        for name in sorted(hopeful, key=lambda name: self._arms[name].gain is not None):  # untried ones first
            cost_s = self._arms[name].cost_s
            trial_s = UPDATES * (GUESSED_WINDOWS * self._window_s if cost_s is None else cost_s)
            if self._explored_s + trial_s <= self._share * self._elapsed_s:
                return _Trial(name, explores=True)
        return None

    def _worth(self, arm: _Arm, errors: float) -> float:
        """Seconds that one more update saves beyond its cost, if the gain is off by so many standard errors."""
        if arm.gain is None or arm.cost_s is None:
            return 0.0
        rows = sum(count for count, _ in self._windows)
        left = (self._horizon or rows) / (rows / len(self._windows))  # windows
        gain: float = arm.gain + errors * arm.variance**0.5
        return gain * left * self._window_s - arm.cost_s

    @property
    def _window_s(self) -> float:
        """Mean serving time of a window."""
        return fmean(seconds for _, seconds in self._windows)
