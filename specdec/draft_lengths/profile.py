"""Profiles: what a pair costs and accepts by batch size and draft length, measured once and kept on disk. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from specdec.core.files import digest, write_json
from specdec.core.lock import locked
from specdec.draft_lengths.costs import interpolated

FOLDER = "draft_tables"
FORM = 4  # version of the file: its fields, and how they are measured


@dataclass(frozen=True, slots=True)
class Trial:
    """A few rounds of a full batch, with one batch size and draft length."""

    draft_s: float  # median over the rounds
    verify_s: float  # the rest of a round, prefill apart; also a median
    num_row_rounds: int
    tried: list[int]  # by place of the draft: tokens up to and including the first rejected one
    accepted: list[int]  # of those, accepted tokens
    read_s: float  # the draft model's prefill, per prompt token; the same for all trials of a batch size
    num_nodes: float = 0.0  # drafted tokens per row and round; 0: not measured

    @property
    def num_accepted(self) -> int:
        """Accepted tokens of all rows and rounds."""
        return sum(self.accepted)


@dataclass(frozen=True, slots=True)
class Profiler:
    """Runs trials, and says where profiles are kept and which settings identify them."""

    run: Callable[[int, list[int]], dict[int, Trial]]  # batch size and draft lengths
    results_dir: Path
    settings: Callable[[], dict[str, Any]]
    narrower: dict[int, Profiler] = field(default_factory=dict)  # the same with narrower trees, by width


class Profile:
    """Trials of one pair and device by batch size and draft length."""

    def __init__(self, profiler: Profiler) -> None:
        self._profiler = profiler
        self._settings = {"form": FORM, **profiler.settings()}
        self.path = profiler.results_dir / FOLDER / f"{digest(self._settings)}.json"
        self.trials = read_trials(self.path)

    def complete(self, batch: int, max_gamma: int) -> bool:
        """Run and save the missing trials of powers of two up to both limits; returns whether any were missing.

        All draft lengths of a batch size are measured in turn, so that a slow moment of the machine affects all alike.
        """
        if not self._missing(batch, max_gamma):
            return False
        with locked(self._profiler.results_dir, f"profile-{self.path.stem}"):
            self.trials = read_trials(self.path)  # another process may have written it meanwhile
            missing = self._missing(batch, max_gamma)
            if missing:
                sizes = ", ".join(map(str, missing))
                print(f"note: measuring draft lengths at batch size {sizes}, once per pair and device", flush=True)
            for size, gammas in missing.items():
                self.trials[size] = self._profiler.run(size, gammas)
                self._write()
        return bool(missing)

    def _missing(self, batch: int, max_gamma: int) -> dict[int, list[int]]:
        """Batch sizes that lack a draft length, each with all lengths to measure: the known ones are measured again."""
        wanted = set(_lengths(max_gamma))
        known = {size: set(self.trials.get(size, {})) for size in powers_of_two(batch)}
        return {size: sorted(wanted | lengths) for size, lengths in known.items() if wanted - lengths}

    def of(self, batch: int, max_gamma: int) -> dict[int, dict[int, Trial]]:
        """The trials of powers of two up to both limits; call complete() first."""
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
    """Trials by batch size and draft length; empty if there is no such file."""
    if not path.exists():
        return {}
    written = json.loads(path.read_text())["trials"]
    return {
        int(batch): {int(gamma): Trial(**trial) for gamma, trial in trials.items()} for batch, trials in written.items()
    }


def best_gammas(trials: dict[int, dict[int, Trial]]) -> dict[int, int]:
    """The draft length with the least time per token for each batch size, 0 allowed.

    argmin over s of (s t_draft(b) + t_verify(b, s + 1)) / (mean accepted(s) + 1), s from 0 to the longest profiled.
    Acceptance does not depend on the batch size, so trials of all sizes are averaged. Time and acceptance are linear
    between profiled lengths. Source: Su et al. 2023, arXiv 2310.18813.
    """
    accepted = _mean_accepted(trials)
    best = {}
    for batch, by_gamma in trials.items():
        steps = sum(gamma for gamma in by_gamma)
        draft_s = sum(trial.draft_s for trial in by_gamma.values()) / steps if steps else 0.0
        verify_s = {gamma: trial.verify_s for gamma, trial in by_gamma.items()}

        def seconds_per_token(gamma: int, draft_s: float = draft_s, verify_s: dict[int, float] = verify_s) -> float:
            return (gamma * draft_s + interpolated(verify_s, gamma)) / (interpolated(accepted, gamma) + 1)

        best[batch] = min(range(max(by_gamma) + 1), key=seconds_per_token)
    return best


def by_place(trials: dict[int, dict[int, Trial]], what: str) -> list[int]:
    """``tried`` or ``accepted`` tokens of all trials, by place of the draft."""
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
