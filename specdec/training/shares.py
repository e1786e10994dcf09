"""Mixtures: which part each draw is from, by the parts' shares alone, so that a place in a mixture is one number."""

from __future__ import annotations

from specdec.training import TrainingError

PERIOD = 100  # draws after which the order of the parts repeats


def check_shares(others: list[float], setting: str) -> None:
    """Refuse shares of a mixture's further parts that leave nothing for its first one.

    Raises:
        TrainingError: names the setting.
    """
    smallest = 1 / PERIOD
    if any(share < smallest for share in others) or sum(others) > 1 - smallest:
        raise TrainingError(f"{setting}: shares {others}: each must be at least {smallest:g}, and all less than 1")


class Mixture:
    """Draws from several parts, evenly spread."""

    def __init__(self, shares: list[float]) -> None:
        counts, self._parts = [0] * len(shares), list[int]()
        for number in range(1, PERIOD + 1):
            part = max(range(len(shares)), key=lambda k: shares[k] * number - counts[k])  # furthest behind its share
            counts[part] += 1
            self._parts.append(part)
        self._counts = counts

    def __call__(self, number: int) -> tuple[int, int]:
        """The part that draw ``number`` is from, and how many earlier draws are from that part."""
        period, place = divmod(number, PERIOD)
        part = self._parts[place]
        return part, period * self._counts[part] + self._parts[:place].count(part)
