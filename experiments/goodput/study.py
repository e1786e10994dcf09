"""Ablation of goodput: all scripted worlds are run without each of its parts in turn.

python experiments/goodput/study.py                  # writes ablation.md, some ten minutes on one core
python experiments/goodput/study.py --only probe     # some parts
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from worlds import Fixed, World, profiler, run, worlds

from specdec.draft_lengths import acceptance, costs, goodput, probes
from specdec.draft_lengths.acceptance import Acceptance
from specdec.draft_lengths.catch_up import CatchUpCosts
from specdec.draft_lengths.goodput import GoodputLength

SEEDS = range(2)
GAMMAS = (0, 1, 2, 3, 4, 6, 8)
Changes = Callable[[], list[Any]]


def changed(owner: Any, **values: Any) -> Changes:
    """Attributes of a module or class that are others in an ablation."""
    return lambda: [patch.object(owner, name, value) for name, value in values.items()]


def mean_rate(self: Acceptance, row: int) -> float:
    run = self._run.accepted / self._run.trials
    own = self._rows.get(row)
    trust = acceptance.ROW_TRUST
    return (own.accepted + trust * run) / (own.trials + trust) if own else run


PARTS: dict[str, Changes] = {
    "nothing": list,
    "one standard error of optimism": changed(Acceptance, rate=mean_rate),
    "rates by row": changed(acceptance, ROW_TRUST=1e9),
    "MEMORY of the run's acceptance": changed(acceptance, MEMORY=1e9),
    "PROFILE_TRIALS, 12 instead": changed(acceptance, PROFILE_TRIALS=12.0),
    "scale of the profile's costs": changed(costs, median=lambda ratios: (list(ratios), 1.0)[1]),
    "PROFILE_ROUNDS, 0 instead": changed(costs, PROFILE_ROUNDS=0),
    "WINDOW, endless": changed(costs, WINDOW=100_000),
    "WINDOW, 5": changed(costs, WINDOW=5),
    "PLAIN_ROUNDS, 1 instead": changed(goodput, PLAIN_ROUNDS=1),
    "KEPT_ROUNDS, 0 instead (time to choose not counted)": changed(goodput, KEPT_ROUNDS=0),
    "KEPT_ROUNDS, 8": changed(goodput, KEPT_ROUNDS=8),
    "IN_STEP_GAIN": changed(goodput, IN_STEP_GAIN=1.0),
    "LEAST_CHANCE": changed(goodput, LEAST_CHANCE=0.0),
    "no probes where nothing could pay": changed(GoodputLength, _could_pay=lambda self, rows: True),
    "probes": changed(probes.Probes, rested=False),
    "the share of time of probes": changed(probes.Probes, affords=lambda self, expected_s: True),
    "PAUSE of probes": changed(probes, PAUSE=0),
    "ROWS of probes, 1": changed(probes, ROWS=1),
    "ROWS of probes, 8": changed(probes, ROWS=8),
    "STEPS of probes, 1": changed(probes, STEPS=1),
    "STEPS of probes, 4": changed(probes, STEPS=4),
    "ROUNDS of probes, 3": changed(probes, ROUNDS=3),
    "catching up repaid by row": changed(CatchUpCosts, repays=lambda self, row, saving_s, scale: True),
    "catching up repaid by newcomers": changed(CatchUpCosts, newcomers_repay=lambda self, saving_s, scale: True),
    "outputs that end early": changed(CatchUpCosts, _expected=lambda self, num_allowed: num_allowed),
}
"""What is taken out, or set to another value."""


def speeds(profile: bool) -> dict[str, list[float]]:
    """Tokens per second in every world, by seed; worlds in which the profile is wrong need one."""
    found = {}
    for world in worlds():
        if profile or not (world.profiled or world.profiled_text):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                found[str(world)] = [speed(world, GoodputLength(profile=profile), Path(folder), n) for n in SEEDS]
    return found


def speed(world: World, policy: GoodputLength, folder: Path, seed: int) -> float:
    policy.prepare(profiler(world, folder, seed), world.batch)
    return run(world, policy, seed).speed


def best(world: World) -> float:
    """Tokens per second with the best fixed length."""
    return max(mean(run(world, Fixed(gamma), seed).speed for seed in SEEDS) for gamma in GAMMAS)


def measure(part: str) -> dict[str, dict[str, list[float]]]:
    with contextlib.ExitStack() as stack:
        for change in PARTS[part]():
            stack.enter_context(change)
        return {"profile": speeds(True), "no profile": speeds(False)}


def table(results: dict[str, Any]) -> str:
    """Markdown: the whole policy against the best fixed length, then what is lost without each part."""
    whole, lines = results["nothing"], []
    for mode, by_world in whole.items():
        shares = {world: mean(values) / results["best"][world] for world, values in by_world.items()}
        least = min(shares, key=shares.__getitem__)
        lines.append(
            f"{mode}: {mean(shares.values()):.3f} of the best fixed length, least {shares[least]:.2f}: {least}\n"
        )
    lines += [
        "| without | mean | mean, no profile | worlds over 1% worse, better | worst | best |",
        "|---|---|---|---|---|---|",
    ]
    for part, by_mode in results.items():
        if part in ("best", "nothing"):
            continue
        changes = {
            (world, mode): mean(new / old - 1 for old, new in zip(whole[mode][world], values, strict=True))
            for mode, by_world in by_mode.items()
            for world, values in by_world.items()
        }
        means = [mean(change for (_, of), change in changes.items() if of == mode) for mode in by_mode]
        num_worse, num_better = sum(c < -0.01 for c in changes.values()), sum(c > 0.01 for c in changes.values())
        ends = [min(changes, key=changes.__getitem__), max(changes, key=changes.__getitem__)]
        cells = [part, *(f"{100 * value:+.2f}%" for value in means), f"{num_worse}, {num_better}"]
        cells += [f"{100 * changes[end]:+.1f}% {end[0]}{'' if end[1] == 'profile' else ', no profile'}" for end in ends]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="parts whose names contain this; prints the table")
    only = parser.parse_args().only
    results: dict[str, Any] = {"best": {str(world): best(world) for world in worlds()}}
    for part in PARTS:
        if part == "nothing" or only in part:
            print(part, flush=True)
            results[part] = measure(part)
    text = table(results)
    if only:
        print(text)
    else:
        (Path(__file__).parent / "ablation.md").write_text(text)


if __name__ == "__main__":
    main()
