"""Assumed costs of rounds, for policies that measure the pair before a run."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from specdec.draft_lengths.profile import Profiler, Trial

DRAFT_S = 0.05  # per step
FURTHER_S = 0.3  # of verifying each token per row beyond the second
ACCEPTED = 0.7
SECONDS = (1.0, 1.2, 1.3)


@contextlib.contextmanager
def assumed_costs(seconds: tuple[float, ...] = SECONDS) -> Iterator[Profiler]:
    """A profiler that measures nothing.

    Args:
        seconds: of rounds that verify 0, 1 and 2 drafted tokens per row.
    """

    def run(batch: int, gammas: list[int]) -> dict[int, Trial]:
        return {gamma: _trial(gamma, seconds) for gamma in gammas}

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        yield Profiler(run, Path(folder), lambda: {"assumed": list(seconds)})


def _trial(gamma: int, seconds: tuple[float, ...]) -> Trial:
    verify_s = float(np.interp(gamma, range(3), seconds)) + FURTHER_S * max(gamma - 2, 0)
    tried = [round(100 * ACCEPTED**place) for place in range(gamma)]
    accepted = [round(ACCEPTED * count) for count in tried]
    return Trial(DRAFT_S * gamma, verify_s, 100, tried, accepted, 0.001, gamma)
