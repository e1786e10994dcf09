"""Cases that hypothesis draws and shrinks: sequences of contract calls, and whole decoding runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from specdec.alignment.base import Kept

VOCAB = 61
MAX_LENGTH = 250  # of a row, below the small models' context
CROSSED = 128  # columns that the built-in storage begins with: rows that grow past them make it grow
STEP = 7


def ramp(start: int, size: int) -> tuple[int, ...]:
    """A long prompt that can be named in short: every token is ``STEP`` more than the one before, modulo VOCAB."""
    return tuple((start + STEP * i) % VOCAB for i in range(size))


def named(tokens: Sequence[int]) -> str:
    """Tokens as a failing case prints them: all, or how a long ramp begins and what follows it."""
    size = next((i for i, token in enumerate(tokens) if token != (tokens[0] + STEP * i) % VOCAB), len(tokens))
    if size <= 12:
        return str(list(tokens))
    rest = f" + {list(tokens[size:])}" if size < len(tokens) else ""
    return f"ramp({tokens[0]}, {size}){rest}"


@dataclass(frozen=True, slots=True)
class Admit:
    """New rows and their prompts."""

    contents: tuple[tuple[int, tuple[int, ...]], ...]

    def __str__(self) -> str:
        return "admit " + ", ".join(f"{row}: {named(content)}" for row, content in self.contents)


@dataclass(frozen=True, slots=True)
class Release:
    """Rows that are gone."""

    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"release {list(self.rows)}"


@dataclass(frozen=True, slots=True)
class Forward:
    """Per row its tokens; for trees, their parents."""

    tokens: tuple[tuple[int, tuple[int, ...]], ...]
    parents: tuple[tuple[int, ...], ...] | None = None

    def __str__(self) -> str:
        parts = []
        for b, (row, tokens) in enumerate(self.tokens):
            tree = f" under {list(self.parents[b])}" if self.parents else ""
            parts.append(f"{row}: {list(tokens)}{tree}")
        return "forward " + ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Commit:
    """Per row its new length, or the nodes of a path."""

    kept: tuple[tuple[int, int | tuple[int, ...]], ...]

    def __str__(self) -> str:
        return "commit " + ", ".join(
            f"{row}: {keep} tokens" if isinstance(keep, int) else f"{row}: nodes {list(keep)}"
            for row, keep in self.kept
        )

    def kept_lists(self) -> list[Kept]:
        """In the form of the contract."""
        return [keep if isinstance(keep, int) else list(keep) for _, keep in self.kept]


Step = Admit | Release | Forward | Commit


@dataclass(frozen=True, slots=True)
class Program:
    """Calls of the alignment contract, each of them allowed."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps))


@dataclass(frozen=True, slots=True)
class Run:
    """One decoding run of small models: everything that a failing case must name."""

    prompts: tuple[tuple[int, ...], ...]
    budgets: tuple[int, ...]
    batch: int
    gammas: tuple[int, ...]  # wished draft lengths, row by row and round by round
    pattern: tuple[int, ...]  # accepted tokens, row by row and round by round; empty: a real draft model
    draft_is_target: bool = False  # without a pattern: the draft is the target itself, so all must be accepted
    scheduler: str = "static"
    window: int = 4
    stop_every: int = 0  # every n-th token of a row's true output is a stop token; 0: none
    stops_in_prompts: bool = False  # the first token of every prompt is a stop token: pad = eos, for token 0
    seed: int = 0
    dtype: str = "float64"
    temperature: float = 0.0  # above 0 every row samples, with its index as its seed

    def __str__(self) -> str:
        model = "the target itself" if self.draft_is_target else "a model"
        drafts = f"accepting {list(self.pattern)}" if self.pattern else f"drafted by {model}"
        stops = f", stop at every {self.stop_every}th token" if self.stop_every else ""
        stops += ", stop tokens in prompts" if self.stops_in_prompts else ""
        prompts = ", ".join(map(named, self.prompts))
        sampled = f", temperature {self.temperature}" if self.temperature else ""
        return (
            f"{len(self.prompts)} prompts [{prompts}], budgets {list(self.budgets)}, "
            f"batch {self.batch}, gamma {list(self.gammas)}, {drafts}, {self.scheduler} (window {self.window}){stops}, "
            f"{self.dtype}{sampled}, seed {self.seed}"
        )

    @property
    def num_known(self) -> int:
        """Tokens of the true outputs that the case needs, one of two numbers, so that outputs are computed once."""
        return 12 if max(*self.budgets, self.stop_every) <= 12 else 24


tokens_of = st.integers(0, VOCAB - 1)


@st.composite
def programs(draw: Any, trees: bool = True, max_rounds: int = 5, grows: bool = False) -> Program:
    """Admissions, releases, forwards of ragged chains and trees over any rows, commits that keep or cut back.

    With ``grows`` some rows begin so long that the first rounds take them past the columns that storage begins with.
    """
    steps: list[Step] = []
    lengths: dict[int, int] = {}
    for turn in range(draw(st.integers(1, max_rounds))):
        if turn == 0 or draw(st.integers(0, 3)) == 3:
            size = st.one_of(st.integers(CROSSED - 8, CROSSED), st.integers(0, 6)) if grows else st.integers(0, 6)
            sizes = draw(st.lists(size, min_size=1, max_size=3))
            # The lowest free numbers: a newcomer may bear that of a row that has left.
            rows = [row for row in range(len(lengths) + len(sizes)) if row not in lengths][: len(sizes)]
            contents = [_prompt(draw, size) for size in sizes]
            steps.append(Admit(tuple(zip(rows, contents, strict=True))))
            lengths.update(zip(rows, sizes, strict=True))
        if len(lengths) > 1 and draw(st.integers(0, 3)) == 3:
            gone = draw(st.sampled_from(sorted(lengths)))
            steps.append(Release((gone,)))
            del lengths[gone]
        rows_now = draw(st.lists(st.sampled_from(sorted(lengths)), min_size=1, max_size=4, unique=True))
        steps += _round(draw, rows_now, lengths, trees and draw(st.booleans()))
    return Program(tuple(steps))


def _round(draw: Any, rows: list[int], lengths: dict[int, int], tree: bool) -> list[Step]:
    """Some forwards over the same rows, and the commit that ends them."""
    steps: list[Step] = []
    parents: dict[int, list[int]] = {row: [] for row in rows}
    for _ in range(draw(st.integers(1, 3))):
        counts = draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
        counts[0] = max(counts[0], 1)
        fed, linked = [], []
        for row, count in zip(rows, counts, strict=True):
            start = len(parents[row])
            fed.append((row, tuple(draw(st.lists(tokens_of, min_size=count, max_size=count)))))
            links = [draw(st.integers(-1, start + i - 1)) if tree else start + i - 1 for i in range(count)]
            parents[row] += links
            linked.append(tuple(links))
        steps.append(Forward(tuple(fed), tuple(linked) if tree else None))
    kept: list[tuple[int, int | tuple[int, ...]]] = []
    for row in rows:
        nodes = parents[row]
        chain = nodes == list(range(-1, len(nodes) - 1))
        if chain and draw(st.booleans()):
            cut = draw(st.integers(0, min(2, lengths[row]) + len(nodes)))
            lengths[row] += len(nodes) - cut
            kept.append((row, lengths[row]))
        else:
            path: list[int] = []
            node = draw(st.integers(-1, len(nodes) - 1))
            while node >= 0:
                path.insert(0, node)
                node = nodes[node]
            lengths[row] += len(path)
            kept.append((row, tuple(path)))
    cut = draw(st.integers(0, len(kept)))  # some rows may be committed before the others
    steps += [Commit(tuple(part)) for part in (kept[:cut], kept[cut:]) if part]
    return steps


def _prompt(draw: Any, size: int) -> tuple[int, ...]:
    if size > 12:
        return ramp(draw(tokens_of), size)
    return tuple(draw(st.lists(tokens_of, min_size=size, max_size=size)))


@st.composite
def runs(draw: Any, schedulers: tuple[str, ...], scripted: bool | None = None) -> Run:
    """Ragged prompts, budgets and acceptance; stops anywhere, in prompts too; one row or several."""
    num_rows = draw(st.integers(1, 5))
    prompts = draw(st.lists(st.lists(tokens_of, min_size=1, max_size=8), min_size=num_rows, max_size=num_rows))
    if draw(st.integers(0, 5)) == 5:  # one row crosses the columns that storage begins with
        prompts[0] = ramp(prompts[0][0], CROSSED - len(prompts[0]))
    gammas = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    gammas[0] = max(gammas[0], 1)
    by_script = draw(st.booleans()) if scripted is None else scripted
    pattern = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))) if by_script else ()
    batch = draw(st.integers(1, 4))
    return Run(
        prompts=tuple(map(tuple, prompts)),
        budgets=tuple(draw(st.lists(st.integers(1, 12), min_size=num_rows, max_size=num_rows))),
        batch=batch,
        gammas=tuple(gammas),
        pattern=pattern,
        draft_is_target=draw(st.booleans()) and not by_script,
        scheduler=draw(st.sampled_from(schedulers)),
        window=batch + draw(st.integers(0, 3)),
        stop_every=draw(st.sampled_from([0, 0, 1, 3, 5])),
        stops_in_prompts=draw(st.booleans()),
        seed=draw(st.integers(0, 2)),
        dtype=draw(st.sampled_from(["float64", "float64", "float32"])),
    )
