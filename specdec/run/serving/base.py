"""The arrivals contract: when conversations begin, and how long their users think before they go on."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable

from specdec.core.clock import Clock, VirtualClock
from specdec.errors import ConfigError
from specdec.registry import unknown

CLOCKS = {"virtual": VirtualClock, "real": Clock}


class Arrivals(ABC):
    """When requests come. The same seed gives the same arrivals, whatever serves them.

    Args:
        clock: ``virtual`` counts the time that rounds take and skips idle time; ``real`` really waits.
        think_s: mean of the exponential law of the seconds between an answer and the next question; 0: at once.
        seed: of everything drawn.
    """

    online = True  # whether anybody arrives later than at the start

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
        """Seconds from the start at which each conversation begins, in the order of the data."""

    def think(self, index: int) -> float:
        """Seconds between an answer and the next question of its conversation, which is row ``index``."""
        return random.Random(f"{self.seed}/{index}").expovariate(1 / self._think_s) if self._think_s else 0.0

    def open_clock(self, synchronize: Callable[[], None] | None) -> Clock:
        """The clock that the run is measured by."""
        return self._clock(synchronize)
