"""The arrivals contract: when conversations begin, and how long users think between turns."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable

from specdec.core.clock import Clock, VirtualClock
from specdec.errors import ConfigError
from specdec.registry import unknown

CLOCKS = {"virtual": VirtualClock, "real": Clock}


class Arrivals(ABC):
    """Arrival times of requests: a function of the seed alone, whatever serves them.

    Args:
        clock: ``virtual`` counts the time of rounds and skips idle time; ``real`` sleeps through it.
        think_s: mean seconds between an answer and the next question (exponential distribution); 0: none.
        seed: of all random numbers.
    """

    def __init__(self, *, clock: str = "virtual", think_s: float = 0.0, seed: int = 0) -> None:
        if clock not in CLOCKS:
            raise ConfigError(unknown("arrivals.clock", clock, CLOCKS))
        if think_s < 0:
            raise ConfigError(f"arrivals.think_s={think_s}: it must be 0 or more")
        self.seed = seed
        self._clock = CLOCKS[clock]
        self._think_s = think_s

    @abstractmethod
    def times(self, num_conversations: int) -> list[float]:
        """Seconds from the start to the beginning of each conversation, in the order of the data."""

    def think(self, index: int) -> float:
        """Seconds between an answer and the next question, which is row ``index``."""
        return random.Random(f"{self.seed}/{index}").expovariate(1 / self._think_s) if self._think_s else 0.0

    def open_clock(self, synchronize: Callable[[], None] | None) -> Clock:
        """The clock that measures the run."""
        return self._clock(synchronize)
