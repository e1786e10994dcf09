"""``repeat=N``: the whole command in N turns, and one outcome per point with the medians of its speeds.

All points are run once, then all again, so that a change of load on the machine falls on all of them. Each turn of a
point is a run of its own, with a baseline of its own; ``turn`` is part of its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec.cli.presets import SWEEP_DIR, SWEEP_FOLDER, overrides_of
from specdec.core.files import read_lines
from specdec.errors import ConfigError
from specdec.report.intervals import speed_intervals, tokens_and_seconds_of
from specdec.report.turns import estimates
from specdec.report.turns import merged as merge

Outcome = dict[str, Any]


def num_turns(arguments: Sequence[str]) -> int:
    """The value of ``repeat``.

    Raises:
        ConfigError: it is not a number from 1.
    """
    given = [override for override in overrides_of(arguments) if override.key_or_group == "repeat"]
    value = given[-1].value() if given else 1
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{given[-1].input_line}: give the number of turns, from 1")
    return value


def in_turn(arguments: list[str], turn: int) -> list[str]:
    """The command line of a turn; its sweep has a folder of its own."""
    if not turn:
        return arguments
    folders = [str(override.value()) for override in overrides_of(arguments) if override.key_or_group == SWEEP_DIR]
    return [*arguments, f"turn={turn}", f"{SWEEP_DIR}={folders[-1] if folders else SWEEP_FOLDER}_turn{turn}"]


def merged(turns: Sequence[Outcome]) -> Outcome:
    """One outcome for all turns of a point: of the turn with the most to object to, with the medians of the speeds.

    ``interval`` has the 95% intervals of the speeds: over turns, or over the rounds where there was one.
    """
    failed = [outcome for outcome in turns if outcome["status"] != "done"]
    if failed:
        return failed[0]
    if len(turns) > 1:
        found = estimates(turns)
        return {**merge(turns), "interval": {key: [each.low, each.high] for key, each in found.items()}}
    return {**turns[0], "interval": {key: list(ends) for key, ends in _over_rounds(turns[0]).items()}}


def _over_rounds(outcome: Outcome) -> dict[str, tuple[float, float]]:
    folder = Path(outcome["path"])
    units = tokens_and_seconds_of(read_lines(folder / "rounds.jsonl"))
    baseline = outcome.get("baseline")
    other = folder.with_name(str(baseline)) / "rounds.jsonl"
    theirs = tokens_and_seconds_of(read_lines(other)) if baseline and other.exists() else None
    return speed_intervals(outcome, units, theirs) if len(units) else {}
