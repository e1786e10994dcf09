"""How far a stage has come: by steps or by the clock, whichever is further."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from specdec.training.config import PhaseConfig, StageConfig


@dataclass(slots=True)
class Budget:
    """Progress of one stage; `earlier_s` is time spent before a resume."""

    stage: StageConfig
    step: int = 0
    earlier_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def spent_s(self) -> float:
        """Seconds spent on the stage, over all resumed runs."""
        return self.earlier_s + time.monotonic() - self.started_s

    @property
    def fraction(self) -> float:
        """Share of the budget used, in [0, 1]."""
        by_clock = self.spent_s / (60.0 * self.stage.minutes)
        return min(1.0, max(self.step / self.stage.steps, by_clock))

    @property
    def phase(self) -> PhaseConfig:
        """The block length and batch that are due now."""
        reached = 0.0
        for phase in self.stage.phases:
            reached += phase.share
            if self.fraction < reached:
                return phase
        return self.stage.phases[-1]

    @property
    def lr_factor(self) -> float:
        """Linear warmup in steps, then a cosine down to `min_lr_share` over the budget."""
        warmup = min(1.0, (self.step + 1) / max(1, self.stage.warmup_steps))
        low = self.stage.min_lr_share
        return warmup * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * self.fraction)))
