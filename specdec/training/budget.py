"""Progress of a stage: by steps or by the clock, whichever is further."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from specdec.training import TrainingError
from specdec.training.config import PhaseConfig, StageConfig

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(slots=True)
class Budget:
    """Progress of one stage; `earlier_s` is the time spent before a resume. The clock counts if `minutes` is set.

    Learning rate, phases and the end go by `clock_s`, the time of the first device's process at the last step: all
    processes must decide the same, and a step must not depend on when its batch was drawn.
    """

    stage: StageConfig
    step: int = 0
    earlier_s: float = 0.0
    clock_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.stage.schedule not in SCHEDULES:
            raise TrainingError(f"schedule={self.stage.schedule} is unknown; choose from {', '.join(SCHEDULES)}")
        if self.stage.accumulate < 1 or self.stage.steps < 1:
            raise TrainingError(
                f"steps={self.stage.steps}, accumulate={self.stage.accumulate}: both must be at least 1"
            )

    def start(self) -> None:
        """The stage begins, or goes on, now."""
        self.started_s, self.clock_s = time.monotonic(), self.earlier_s

    @property
    def spent_s(self) -> float:
        """Seconds spent on the stage, over all resumed runs."""
        return self.earlier_s + time.monotonic() - self.started_s

    @property
    def fraction(self) -> float:
        """Share of the budget used, in [0, 1]."""
        return self.fraction_at(self.step)

    def fraction_at(self, step: float) -> float:
        """Share of the budget used if `step` steps are done by the clock's time."""
        by_clock = self.clock_s / (60.0 * self.stage.minutes) if self.stage.minutes else 0.0
        return min(1.0, max(step / self.stage.steps, by_clock))

    def phase_at(self, step: float) -> PhaseConfig:
        """The phase (block length and batch) of a step."""
        reached, fraction = 0.0, self.fraction_at(step)
        for phase in self.stage.phases:
            reached += phase.share
            if fraction < reached:
                return phase
        return self.stage.phases[-1]

    def lr_factor(self, step: int) -> float:
        """Linear warmup in steps, then the schedule down to `min_lr_share` over the budget."""
        warmup = min(1.0, (step + 1) / max(1, self.stage.warmup_steps))
        low, fraction = self.stage.min_lr_share, self.fraction_at(step)
        left = {"cosine": 0.5 * (1.0 + math.cos(math.pi * fraction)), "linear": 1.0 - fraction, "constant": 1.0}
        return warmup * (low + (1.0 - low) * left[self.stage.schedule])
