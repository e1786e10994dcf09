"""No arrivals: every conversation begins at the start, as in any run without online serving."""

from __future__ import annotations

from specdec.run.serving.base import Arrivals


class NoArrivals(Arrivals):
    """All conversations begin at the start, on the real clock."""

    def __init__(self) -> None:
        super().__init__(clock="real")

    def times(self, num_conversations: int) -> list[float]:
        return [0.0] * num_conversations
