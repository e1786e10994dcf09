"""Exclusive stage times, which sum to the measured time."""

from __future__ import annotations

import time
from collections.abc import Callable

STAGES = ("prefill", "draft", "verify", "align", "schedule", "other")


class Clock:
    """Charges every moment to the innermost open stage, so that nested stages never count twice.

    On devices that run asynchronously, ``synchronize`` is called at every change of stage, so that a stage is charged
    for the work it started.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._synchronize = synchronize
        self._stack: list[str] = []
        self._since = time.perf_counter()

    def now(self) -> float:
        """The current time in seconds, on the clock's own scale."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """Wait until ``moment``, a time on this clock."""
        time.sleep(max(0.0, moment - self.now()))

    def within(self, name: str) -> bool:
        """Whether a stage is open, at any depth."""
        return name in self._stack

    def discount(self, seconds: float) -> None:
        """Subtract the time that an observer of the run took from the innermost open stage."""
        self._since += seconds

    def stage(self, name: str) -> Clock:
        """Charge the block to ``name``, not to the enclosing stage: ``with clock.stage("draft"): ...``."""
        self._charge()
        self._stack.append(name)
        return self

    def __enter__(self) -> None:
        """Nothing to do: ``stage`` has opened the stage."""

    def __exit__(self, *error: object) -> None:
        """Close the innermost stage."""
        self._charge()
        self._stack.pop()

    def _charge(self) -> None:
        if self._synchronize is not None:
            self._synchronize()
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


class VirtualClock(Clock):
    """A clock on which only the rounds take time: idle time is skipped, and observers of the run take none.

    Its time is that charged to stages plus the skipped idle time; it starts at 0.
    """

    _idle_s = 0.0

    def now(self) -> float:
        """Seconds since the start."""
        self._charge()
        return sum(self.seconds.values()) + self._idle_s

    def wait_until(self, moment: float) -> None:
        """Skip to ``moment``, unless it has passed."""
        self._idle_s += max(0.0, moment - self.now())
