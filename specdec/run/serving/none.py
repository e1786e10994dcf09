"""No arrivals: every conversation is there at the start. What is not online serving runs like this."""

from __future__ import annotations

from specdec.run.serving.base import Arrivals


class NoArrivals(Arrivals):
    """All at the start, on the real clock."""

    online = False

    def __init__(self) -> None:
        super().__init__(clock="real")

    def times(self, num_conversations: int) -> list[float]:
        """Zeros."""
        return [0.0] * num_conversations
