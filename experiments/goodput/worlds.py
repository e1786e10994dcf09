"""Scripted worlds: decoding without models, in which acceptance and costs are formulas and the clock is virtual.

A world says which of a row's tokens the draft predicts, what a round and a prefill cost, how long outputs are, and how
many rows are decoded. Whether a token is predicted depends on the row and the position alone, and noise on the round
alone, so that two policies are compared on the same text. The tests' worlds (tests/worlds.py) are simpler: acceptance
by round, which a test can set to what it needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import pi, sin
from pathlib import Path

from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.profile import Profiler, Trial

STOP = 2
Text = Callable[[random.Random, int, int], list[bool]]
"""Whether the draft predicts each token of an output, from random numbers, the row's place in the run in percent, and
the number of tokens."""


@dataclass(frozen=True)
class Machine:
    """Milliseconds of a round's parts, by rows and by drafted steps."""

    verify: Callable[[int, int], float]  # rows, drafted steps
    draft: Callable[[int, int], float]  # drafting rows, drafted steps
    read: float = 0.2  # the draft, per prompt token
    prefill: float = 0.1  # the target, per prompt token, beside one forward
    noise: float = 0.3  # largest relative slowdown of a round
    drift: float = 0.0  # amplitude of a slow change of speed, period 5 s


@dataclass(frozen=True)
class World:
    """One scripted run."""

    name: str
    machine: Machine
    text: Text
    batch: int
    num_rows: int
    outputs: tuple[int, int] = (64, 64)  # the shortest and the longest
    budget: int | None = None  # tokens that a row may emit, if it stops by itself before
    prompt: int = 50
    static: bool = False  # a place is refilled only when the whole batch is done
    profiled: Machine | None = None  # the machine as it was when the profile was made, if it was another
    profiled_text: Text | None = None  # likewise

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}"


@dataclass
class Result:
    """What a run came to."""

    tokens: int = 0
    seconds: float = 0.0
    gammas: list[int] = field(default_factory=list)  # the longest draft of every round

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


class _Row:
    """A sequence and what its text has in store."""

    def __init__(self, world: World, seed: int, index: int) -> None:
        numbers = random.Random(f"{seed}/{index}")
        length = numbers.randint(*world.outputs)
        budget = world.budget or length
        self.sequence = Sequence(index, [1] * world.prompt, budget, stop_ids=frozenset({STOP}))
        self.predicted = world.text(numbers, 100 * index // world.num_rows, budget)
        self.stop_at = length if world.budget else None
        self.read_to = 0

    def play(self, gamma: int) -> tuple[int, list[int]]:
        """Accepted and emitted tokens of a round."""
        start = len(self.sequence.output_ids)
        ahead = self.predicted[start : start + gamma]
        accepted = ahead.index(False) if False in ahead else len(ahead)
        words = [STOP if start + i + 1 == self.stop_at else 1 for i in range(accepted + 1)]
        return accepted, self.sequence.emit(words)


def run(world: World, policy: DraftLength, seed: int) -> Result:
    """Decode all rows of a world."""
    result, machine = Result(), world.machine
    waiting = [_Row(world, seed, index) for index in reversed(range(world.num_rows))]
    rows: list[_Row] = []
    noises = random.Random(f"{seed}/noise")
    while waiting or rows:
        slow = (1 + machine.noise * noises.random() ** 4) * (1 + machine.drift * sin(2 * pi * result.seconds / 5))
        prefill_ms = 0.0
        if not (rows and world.static):
            newcomers = [waiting.pop() for _ in range(min(world.batch - len(rows), len(waiting)))]
            if newcomers:
                num_read = world.prompt * len(newcomers)
                prefill_ms = machine.verify(len(newcomers), 0) + machine.prefill * num_read
                if policy.drafting:
                    prefill_ms += machine.draft(len(newcomers), 1) + machine.read * num_read
                    for row in newcomers:
                        row.read_to = world.prompt
            rows += newcomers
        sequences = [row.sequence for row in rows]
        wished = policy.choose(sequences)
        asked = [min(gamma, row.num_remaining - 1) for gamma, row in zip(wished, sequences, strict=True)]
        drafting = [row for row, gamma in zip(rows, asked, strict=True) if gamma]
        num_lacking = sum(lag for row in drafting if (lag := row.sequence.length - row.read_to) > 9)
        draft_ms = machine.draft(len(drafting), max(asked)) if drafting else 0.0
        if num_lacking:
            draft_ms += machine.draft(len(drafting), 1) + machine.read * num_lacking
        outcomes = [row.play(gamma) for row, gamma in zip(rows, asked, strict=True)]
        for row in drafting:
            row.read_to = row.sequence.length
        seconds = {
            "draft": slow * draft_ms / 1000,
            "verify": slow * machine.verify(len(rows), max(asked)) / 1000,
            "prefill": slow * prefill_ms / 1000,
        }
        accepted, emitted = [a for a, _ in outcomes], [e for _, e in outcomes]
        finished = [row for row in sequences if row.finished]
        policy.observe(Round(sequences, asked, accepted, emitted, False, seconds, finished))
        rows = [row for row in rows if not row.sequence.finished]
        result.seconds += sum(seconds.values())
        result.tokens += sum(map(len, emitted))
        result.gammas.append(max(asked))
    return result


class Fixed(DraftLength):
    """The same length in every round; 0 leaves the draft alone."""

    def __init__(self, gamma: int) -> None:
        self.gamma, self.drafting = gamma, gamma > 0

    def choose(self, rows: list[Sequence]) -> list[int]:
        return [self.gamma] * len(rows)


def profiler(world: World, folder: Path, seed: int) -> Profiler:
    """Short runs of a world, as a policy sees them before the clock starts: each batch size has the first prompts."""
    machine, text = world.profiled or world.machine, world.profiled_text or world.text
    short = replace(world, text=text, outputs=(64, 64), budget=None)

    def trials(size: int, gammas: list[int]) -> dict[int, Trial]:
        return {gamma: trial(size, gamma) for gamma in gammas}

    def trial(size: int, gamma: int) -> Trial:
        drafts = []
        for index in range(size):
            row = _Row(short, seed, index)
            drafts += [row.play(gamma)[0] for _ in range(5)]
        tried = [sum(place < min(accepted + 1, gamma) for accepted in drafts) for place in range(gamma)]
        right = [sum(place < accepted for accepted in drafts) for place in range(gamma)]
        draft_s = machine.draft(size, gamma) / 1000 if gamma else 0.0
        return Trial(draft_s, machine.verify(size, gamma) / 1000, len(drafts), tried, right, machine.read / 1000)

    return Profiler(trials, folder, lambda: {"world": world.name, "seed": seed})


# --- texts --------------------------------------------------------------------------------------------------------


def even(rate: float) -> Text:
    """Every token is predicted with the same chance."""
    return lambda numbers, percent, length: [numbers.random() < rate for _ in range(length)]


def spells(easy: float, hard: float, mean_length: float) -> Text:
    """Easy and hard stretches of text follow each other: a draft that has come far is in easy text."""

    def text(numbers: random.Random, percent: int, length: int) -> list[bool]:
        rate, predicted = numbers.choice([easy, hard]), []
        for _ in range(length):
            if numbers.random() < 1 / mean_length:
                rate = easy + hard - rate
            predicted.append(numbers.random() < rate)
        return predicted

    return text


def mixed(*rates: float) -> Text:
    """Each row has one of several rates."""
    return lambda numbers, percent, length: even(numbers.choice(rates))(numbers, percent, length)


def changing(before: float, after: float, at_percent: int = 50) -> Text:
    """Rows after so many percent of all have another rate."""
    return lambda numbers, percent, length: even(before if percent < at_percent else after)(numbers, percent, length)


# --- machines -----------------------------------------------------------------------------------------------------

MEMORY_BOUND = Machine(lambda rows, steps: 10.0, lambda rows, steps: 1.0 * steps)
"""A verification costs the same for any length: drafting pays."""
DEAR_DRAFT = Machine(lambda rows, steps: 10.0, lambda rows, steps: 4.0 * steps)
FIXED_PART = Machine(lambda rows, steps: 12.0 + 0.3 * rows, lambda rows, steps: 2.3 + 2.1 * steps)
"""As the built-in pair on two cores: a draft's first step costs twice as much as the others."""
ROOFLINE = Machine(
    lambda rows, steps: max(10.0, 0.25 * rows * (steps + 1)), lambda rows, steps: max(1.0, 0.03 * rows) * steps
)
"""A verification costs the same until the processor is busy."""
COMPUTE_BOUND = Machine(
    lambda rows, steps: 5.0 + 5.0 * rows * (steps + 1) ** 0.9, lambda rows, steps: (0.5 + 0.5 * rows) * steps
)
"""Every drafted token costs nearly as much as a plain one."""


MACHINES = {
    "memory": MEMORY_BOUND,
    "dear": DEAR_DRAFT,
    "fixed-part": FIXED_PART,
    "roofline": ROOFLINE,
    "compute": COMPUTE_BOUND,
}


def worlds() -> list[World]:
    """All worlds of the study."""
    found = []
    # Stationary text on each machine.
    stationary = {
        1: ("memory 0.3", "memory 0.9", "dear 0.6", "dear 0.9", "fixed-part 0.3", "fixed-part 0.6", "compute 0.6"),
        8: ("memory 0.3", "memory 0.9", "dear 0.6", "dear 0.9", "fixed-part 0.3", "fixed-part 0.6", "roofline 0.9"),
        32: ("memory 0.6", "fixed-part 0.3", "fixed-part 0.6", "fixed-part 0.9", "roofline 0.9", "compute 0.6"),
    }
    for batch, names in stationary.items():
        for name in (*names, "memory 0.02"):
            machine, rate = name.split()
            outputs = (32, 160) if batch > 1 else (96, 160)
            found.append(World(name, MACHINES[machine], even(float(rate)), batch, max(3 * batch, 8), outputs))
    # Text that differs by position, by row, or in time.
    for batch in (1, 8, 32):
        common = {"batch": batch, "num_rows": max(4 * batch, 12), "outputs": (48, 144)}
        found += [
            World("spells", FIXED_PART, spells(0.97, 0.2, 8), **common),
            World("mixed rows", MEMORY_BOUND, mixed(0.05, 0.9), **common),
            World("worse later", FIXED_PART, changing(0.9, 0.05), **common),
            World("better later", FIXED_PART, changing(0.05, 0.9), **common),
            World("drifting machine", replace(FIXED_PART, drift=0.17), even(0.45), **common),
            World("noisy machine", replace(FIXED_PART, noise=1.5), even(0.45), **common),
        ]
    found += [
        World("mixed rows, dear", DEAR_DRAFT, mixed(0.1, 0.5, 0.95), 1, 12, (48, 144)),
        World("mixed rows, roofline", ROOFLINE, mixed(0.05, 0.9), 8, 32, (48, 144)),
        World("spells, roofline", ROOFLINE, spells(0.95, 0.1, 12), 8, 32, (48, 144)),
        World("better much later", FIXED_PART, changing(0.05, 0.9), 8, 128, (48, 144)),
    ]
    # Outputs and prompts.
    later = {"outputs": (32, 96), "prompt": 600}
    for batch in (8, 32):
        found += [
            World("one batch", FIXED_PART, even(0.7), batch, batch, (96, 96)),
            World("one batch, small gain", FIXED_PART, even(0.4), batch, batch, (96, 96)),
            World("three waves in step, small gain", FIXED_PART, even(0.4), batch, 3 * batch, (96, 96)),
            World("three waves in step, no gain", FIXED_PART, even(0.25), batch, 3 * batch, (96, 96)),
            World("three waves, static", FIXED_PART, even(0.6), batch, 3 * batch, (48, 144), static=True),
            World("short outputs", MEMORY_BOUND, even(0.6), batch, 6 * batch, (8, 24)),
            World("outputs end early", MEMORY_BOUND, even(0.6), batch, 6 * batch, (10, 14), budget=512),
            World("long prompts", MEMORY_BOUND, even(0.5), batch, 3 * batch, (32, 96), prompt=1000),
            World("long prompts, worse later", MEMORY_BOUND, changing(0.8, 0.1), batch, 4 * batch, **later),
            World("long prompts, better later", MEMORY_BOUND, changing(0.1, 0.8), batch, 4 * batch, **later),
        ]
    # The profile is wrong.
    twice = Machine(lambda rows, steps: 24.0 + 0.6 * rows, lambda rows, steps: 4.6 + 4.2 * steps)
    half = Machine(lambda rows, steps: 5.0, lambda rows, steps: 2.0 * steps)
    slow_plain = replace(
        COMPUTE_BOUND, verify=lambda rows, steps: COMPUTE_BOUND.verify(rows, steps) * (1 if steps else 5)
    )
    slow_once = replace(
        MEMORY_BOUND, draft=lambda rows, steps: MEMORY_BOUND.draft(rows, steps) * (6 if steps == 4 else 1)
    )
    for batch, num_rows in ((1, 8), (8, 32), (32, 96)):
        common = {"batch": batch, "num_rows": num_rows, "outputs": (48, 144)}
        found += [
            World("slower than profiled", twice, even(0.5), profiled=FIXED_PART, **common),
            World("faster than profiled", half, even(0.7), profiled=DEAR_DRAFT, **common),
            World("profiled a slow plain round", COMPUTE_BOUND, even(0.4), profiled=slow_plain, **common),
            World("profiled a slow length", MEMORY_BOUND, even(0.7), profiled=slow_once, **common),
            World("profiled a dear draft", MEMORY_BOUND, even(0.7), profiled=DEAR_DRAFT, **common),
            World("profiled a cheap draft", DEAR_DRAFT, even(0.4), profiled=MEMORY_BOUND, **common),
            World("profiled better text", FIXED_PART, even(0.2), profiled_text=even(0.9), **common),
            World("profiled worse text", FIXED_PART, even(0.9), profiled_text=even(0.05), **common),
        ]
    return found
