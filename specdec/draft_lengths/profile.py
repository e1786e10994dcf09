"""What a pair costs and accepts at a batch size, measured once in short runs and kept on disk. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from specdec.core.files import digest, write_json
from specdec.core.lock import locked

FOLDER = "draft_tables"
FORM = 2  # of what a trial consists of


@dataclass(frozen=True, slots=True)
class Trial:
    """A few rounds of a full batch of one size, with one draft length."""

    draft_s: float  # median over the rounds
    verify_s: float  # the rest of a round, likewise
    num_row_rounds: int
    tried: list[int]  # drafted tokens by place that came to be judged: all up to the first that was rejected
    accepted: list[int]  # of these
    read_s: float  # per prompt token, that the draft takes to read a batch's prompts; the same for all its trials

    @property
    def num_accepted(self) -> int:
        """Accepted tokens of all rows and rounds."""
        return sum(self.accepted)


@dataclass(frozen=True, slots=True)
class Profiler:
    """How trials are run, where they are kept, and everything that decides what they come to."""

    run: Callable[[int, list[int]], dict[int, Trial]]  # batch size and draft lengths
    results_dir: Path
    settings: Callable[[], dict[str, Any]]


class Profile:
    """Trials of one pair and device by batch size and draft length; those that are missing are run."""

    def __init__(self, profiler: Profiler) -> None:
        self._profiler = profiler
        self._settings = {"form": FORM, **profiler.settings()}
        self.path = profiler.results_dir / FOLDER / f"{digest(self._settings)}.json"
        self.trials = read_trials(self.path)

    def complete(self, batch: int, max_gamma: int) -> bool:
        """Measure what is missing of powers of two up to both limits, and write it down; returns whether anything was.

        A batch size is measured with all draft lengths in turn, so that a slow moment of the machine favours none.
        """
        if not self._missing(batch, max_gamma):
            return False
        with locked(self._profiler.results_dir, f"profile-{self.path.stem}"):
            self.trials = read_trials(self.path)  # another process may have been faster
            missing = self._missing(batch, max_gamma)
            if missing:
                sizes = ", ".join(map(str, missing))
                print(f"note: measuring draft lengths at batch size {sizes}, once per pair and device", flush=True)
            for size, gammas in missing.items():
                self.trials[size] = self._profiler.run(size, gammas)
                self._write()
        return bool(missing)

    def _missing(self, batch: int, max_gamma: int) -> dict[int, list[int]]:
        """Sizes that lack a length, and all lengths that are then measured: those that are known again, in turn."""
        wanted = set(_lengths(max_gamma))
        known = {size: set(self.trials.get(size, {})) for size in powers_of_two(batch)}
        return {size: sorted(wanted | lengths) for size, lengths in known.items() if wanted - lengths}

    def of(self, batch: int, max_gamma: int) -> dict[int, dict[int, Trial]]:
        """The trials of powers of two up to both limits, after complete()."""
        return {
            size: {gamma: self.trials[size][gamma] for gamma in _lengths(max_gamma)} for size in powers_of_two(batch)
        }

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        trials = {
            str(batch): {str(gamma): asdict(trial) for gamma, trial in sorted(trials.items())}
            for batch, trials in sorted(self.trials.items())
        }
        write_json(self.path, {"settings": self._settings, "trials": trials})


def _lengths(max_gamma: int) -> list[int]:
    return [0, *powers_of_two(max_gamma)]


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... below ``limit``, and ``limit`` itself."""
    return [*(1 << i for i in range((limit - 1).bit_length())), limit]


def read_trials(path: Path) -> dict[int, dict[int, Trial]]:
    """By batch size and draft length; nothing where there is no file."""
    if not path.exists():
        return {}
    written = json.loads(path.read_text())["trials"]
    return {
        int(batch): {int(gamma): Trial(**trial) for gamma, trial in trials.items()} for batch, trials in written.items()
    }


def best_gammas(trials: dict[int, dict[int, Trial]]) -> dict[int, int]:
    """Per batch size the draft length of the least time per token, 0 allowed.

    argmin over s of (s t_draft(b) + t_verify(b, s + 1)) / (mean accepted(s) + 1), s from 0 to the longest profiled.
    What a length accepts does not depend on the batch, so all trials of that length count; between the lengths that
    were profiled, time and acceptance are linear. Source: Su et al. 2023, arXiv 2310.18813.
    """
    accepted = _mean_accepted(trials)
    best = {}
    for batch, by_gamma in trials.items():
        steps = sum(gamma for gamma in by_gamma)
        draft_s = sum(trial.draft_s for trial in by_gamma.values()) / steps if steps else 0.0
        verify_s = {gamma: trial.verify_s for gamma, trial in by_gamma.items()}

        def seconds_per_token(gamma: int, draft_s: float = draft_s, verify_s: dict[int, float] = verify_s) -> float:
            return (gamma * draft_s + between(verify_s, gamma)) / (between(accepted, gamma) + 1)

        best[batch] = min(range(max(by_gamma) + 1), key=seconds_per_token)
    return best


def by_place(trials: dict[int, dict[int, Trial]], what: str) -> list[int]:
    """``tried`` or ``accepted`` tokens of all trials by place of the draft."""
    counts: list[list[int]] = [getattr(trial, what) for by_gamma in trials.values() for trial in by_gamma.values()]
    return [sum(places) for places in zip_longest(*counts, fillvalue=0)]


def _mean_accepted(trials: dict[int, dict[int, Trial]]) -> dict[int, float]:
    """Accepted tokens per row and round, by draft length."""
    gammas = {gamma for by_gamma in trials.values() for gamma in by_gamma}
    means = {}
    for gamma in gammas:
        alike = [by_gamma[gamma] for by_gamma in trials.values() if gamma in by_gamma]
        means[gamma] = sum(trial.num_accepted for trial in alike) / max(sum(trial.num_row_rounds for trial in alike), 1)
    return means


def between(known: dict[int, float], place: int) -> float:
    """The value at ``place``, linear between the nearest that are known."""
    below = max(key for key in known if key <= place)
    above = min(key for key in known if key >= place)
    if below == above:
        return known[below]
    return known[below] + (known[above] - known[below]) * (place - below) / (above - below)
