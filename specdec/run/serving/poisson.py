"""A Poisson process: conversations begin independently of each other, ``rate`` per second on average."""

from __future__ import annotations

import random
from itertools import accumulate

from specdec.errors import ConfigError
from specdec.run.serving.base import Arrivals


class PoissonArrivals(Arrivals):
    """Exponential times between arrivals."""

    def __init__(self, *, rate: float = 1.0, think_s: float = 0.0, seed: int = 0, clock: str = "virtual") -> None:
        super().__init__(clock=clock, think_s=think_s, seed=seed)
        if not rate > 0:
            raise ConfigError(f"arrivals.rate={rate}: it must be above 0 (conversations per second)")
        self._rate = rate

    def times(self, num_conversations: int) -> list[float]:
        draws = random.Random(self.seed)
        return list(accumulate(draws.expovariate(self._rate) for _ in range(num_conversations)))
