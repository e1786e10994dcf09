"""A clock on which only the rounds take time: idle time is skipped, and who watches the run does not slow it down."""

from __future__ import annotations

from specdec.clock import Clock


class VirtualClock(Clock):
    """Its time is the time charged to stages, plus the idle time that was skipped; it starts at 0."""

    _idle_s = 0.0

    def now(self) -> float:
        """Seconds since the start."""
        self._charge()
        return sum(self.seconds.values()) + self._idle_s

    def wait_until(self, moment: float) -> None:
        """Jump to ``moment``, if it is not past."""
        self._idle_s += max(0.0, moment - self.now())
