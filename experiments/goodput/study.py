"""What each part of goodput earns: it is taken out, and all scripted worlds are run without it.

python experiments/goodput/study.py                  # writes ablation.md, some 20 minutes on one core
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

from specdec.draft_lengths import acceptance, costs, goodput, probes, reading
from specdec.draft_lengths.goodput import GoodputLength

SEEDS = range(2)
GAMMAS = (0, 1, 2, 3, 4, 6, 8)
Changes = Callable[[], list[Any]]


def const(module, **values):
    return lambda: [patch.object(module, name, value) for name, value in values.items()]


def method(owner, name, new):
    return lambda: [patch.object(owner, name, new)]


def both(*makers):
    return lambda: [p for make in makers for p in make()]


def rate(self, row):
    mean_ = self._run.accepted / self._run.trials
    own = self._rows.get(row)
    t = acceptance.ROW_TRUST
    return mean_ if own is None else (own.accepted + t * mean_) / (own.trials + t)


def plain_nearest(known, num_rows):
    sizes = sorted(rows for rows, steps in known if steps == 0)
    if not sizes:
        raise ValueError("no plain round was measured")
    return known[min(sizes, key=lambda rows: abs(rows - num_rows)), 0]


def beyond_proportional(extras, num_steps):
    nearest = min(extras, key=lambda steps: abs(steps - num_steps))
    return extras[nearest] * num_steps / nearest


def beyond_free(extras, num_steps):
    nearest = sorted(sorted(extras), key=lambda steps: abs(steps - num_steps))[:2]
    extra = extras[nearest[0]]
    slope = 0.7 * extra / nearest[0]
    if len(nearest) == 2:
        slope = (extras[nearest[1]] - extra) / (nearest[1] - nearest[0])
    return extra + slope * (num_steps - nearest[0])


_wish0 = GoodputLength._wish


def wish_no_reset(self, rows):
    before = self._expected, self._emitted
    out = _wish0(self, rows)
    self._expected, self._emitted = before
    return out


R = reading.ReadingCosts
PARTS: dict[str, Changes] = {
    "nothing": list,
    "acceptance: one standard error of optimism": method(acceptance.Acceptance, "rate", rate),
    "acceptance: rates by row": const(acceptance, ROW_TRUST=1e9),
    "acceptance: chances by place of the draft": const(acceptance, PLACE_TRUST=1e9),
    "acceptance: RUN_MEMORY": const(acceptance, RUN_MEMORY=1e9),
    "acceptance: ROW_MEMORY": const(acceptance, ROW_MEMORY=1e9),
    "acceptance: both memories": const(acceptance, ROW_MEMORY=1e9, RUN_MEMORY=1e9),
    "acceptance: BELIEVED_TRIALS, 12 as PRIOR_TRIALS": const(acceptance, BELIEVED_TRIALS=12.0),
    "acceptance: PRIOR_TRIALS, 2": const(acceptance, PRIOR_TRIALS=2.0),
    "costs: BELIEVED_ROUNDS": const(costs, BELIEVED_ROUNDS=0),
    "costs: WINDOW, endless": const(costs, WINDOW=100000),
    "costs: WINDOW, 3": const(costs, WINDOW=3),
    "costs: MIN_SLOPE": const(costs, MIN_SLOPE=0.0),
    "costs: FIRST_STEP_SHARE": const(costs, FIRST_STEP_SHARE=0.0),
    "costs: proportions only (scale)": const(costs, median=lambda values: (list(values), 1.0)[1]),
    "costs: half of a plain round is fixed": method(costs, "_plain", plain_nearest),
    "costs: line beyond the longest draft, proportional": method(costs, "_beyond", beyond_proportional),
    "costs: bounds of that line": method(costs, "_beyond", beyond_free),
    "PLAIN_FIRST, 1": const(goodput, PLAIN_FIRST=1),
    "PLAIN_SOON": const(goodput, PLAIN_SOON=0),
    "DRAFT_SCALING": const(goodput, DRAFT_SCALING=0.0),
    "GAIN_TO_START and GAIN_TO_STAY": const(goodput, GAIN_TO_START=1.0, GAIN_TO_STAY=1.0),
    "GAIN_TO_START": const(goodput, GAIN_TO_START=1.0),
    "GAIN_TO_STAY": const(goodput, GAIN_TO_STAY=1.0),
    "OUT_OF_STEP": const(goodput, OUT_OF_STEP=1.0),
    "KEPT_ROUNDS and KEPT_AT_FIRST": const(goodput, KEPT_ROUNDS=0, KEPT_AT_FIRST=0),
    "KEPT_AT_FIRST, as KEPT_ROUNDS": const(goodput, KEPT_AT_FIRST=7),
    "LEAST_CHANCE": method(GoodputLength, "_reachable", lambda self, row, gamma: gamma),
    "GUESS_TRUST": const(goodput, GUESS_TRUST=1.0),
    "trust: what drafting rounds gave": method(GoodputLength, "_trust", property(lambda self: 1.0)),
    "FIRST_TRUST": const(goodput, FIRST_TRUST=1.0),
    "BEST_RATE: no probes where no acceptance pays": method(GoodputLength, "_could_pay", lambda self, rows: True),
    "trust is reset by a probe": method(GoodputLength, "_wish", wish_no_reset),
    "probes ask the cheapest rows": method(
        GoodputLength, "_cheapest_to_ask", lambda self, rows: [r for r in rows if r.num_remaining > 1]
    ),
    "probes: the first one's expected cost": method(GoodputLength, "_probe_s", lambda self, rows, able: 0.0),
    "probes: PROBE_SHARE": const(probes, PROBE_SHARE=0.0),
    "probes: PROBE_ROWS and PROBE_SHARE, one row": const(probes, PROBE_SHARE=0.0, PROBE_ROWS=1),
    "probes: PROBE_SHARE, all rows": const(probes, PROBE_SHARE=1.0),
    "probes: PROBE_STEPS, 1": both(const(probes, PROBE_STEPS=1), const(goodput, PROBE_STEPS=1)),
    "probes: PROBE_STEPS, 4": both(const(probes, PROBE_STEPS=4), const(goodput, PROBE_STEPS=4)),
    "probes: FIRST_ROUNDS and FIRST_TRIALS": const(probes, FIRST_ROUNDS=probes.ROUNDS, FIRST_TRIALS=probes.TRIALS),
    "probes: TRIALS and MOST_ROUNDS": const(probes, TRIALS=0, FIRST_TRIALS=0),
    "probes: LONGEST_PAUSE, 16": const(probes, LONGEST_PAUSE=16),
    "probes: both pauses 64": const(probes, LONGEST_PAUSE=64, SHORTEST_PAUSE=64),
    "probes: share of the time": method(probes.Probes, "affordable", lambda self, expected: True),
    "probes: all": method(probes.Probes, "rested", property(lambda self: False)),
    "probes: pauses start again from the shortest": method(probes.Probes, "reset", lambda self: None),
    "probes: end early where nothing pays": method(probes.Probes, "ask_no_longer", lambda self: None),
    "reading: all of it": both(
        method(R, "repays", lambda self, row, saving, usual: True),
        method(R, "newcomers_repay", lambda self, saving: True),
    ),
    "reading: by row": method(R, "repays", lambda self, row, saving, usual: True),
    "reading: newcomers": method(R, "newcomers_repay", lambda self, saving: True),
    "reading: REPAID": const(reading, REPAID=1.0),
    "reading: measured in the run": method(R, "postpone", lambda self, a, b: None),
    "reading: outputs that end early": method(R, "_expected", lambda self, allowed: allowed),
}


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
