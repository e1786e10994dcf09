"""Cases that hypothesis draws and shrinks: programs of contract calls, and decoding runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from specdec.alignment.base import Kept

VOCAB = 61
MAX_LENGTH = 250  # of a row, below the small models' context
CROSSED = 128  # initial columns of the built-in storage: it must grow when a row exceeds them
STEP = 7


def ramp(start: int, size: int) -> tuple[int, ...]:
    """A long prompt that prints in short: every token is the one before plus ``STEP``, modulo VOCAB."""
    return tuple((start + STEP * i) % VOCAB for i in range(size))


def abbreviated(tokens: Sequence[int]) -> str:
    """Tokens as a failing case prints them: all of them, or a long ramp in short and the tokens after it."""
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
        return "admit " + ", ".join(f"{row}: {abbreviated(content)}" for row, content in self.contents)


@dataclass(frozen=True, slots=True)
class Release:
    """Rows that leave."""

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
    """A sequence of allowed calls of the alignment contract."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps))


@dataclass(frozen=True, slots=True)
class DecodingCase:
    """One decoding run of small models, with all that decides its outcome."""

    prompts: tuple[tuple[int, ...], ...]
    budgets: tuple[int, ...]
    batch: int
    gammas: tuple[int, ...]  # requested draft lengths: see `gamma`
    pattern: tuple[int, ...]  # right draft tokens: see `num_right`; empty: a model drafts
    draft_is_target: bool = False  # without a pattern: the target drafts, so everything must be accepted
    scheduler: str = "static"
    window: int = 4
    stop_every: int = 0  # the n-th token of each true output is a stop token; 0: none
    stops_in_prompts: bool = False  # the first token of every prompt is a stop token: pad = eos, for token 0
    seed: int = 0
    dtype: str = "float64"
    temperature: float = 0.0  # above 0: every row samples, with its index as seed

    def __str__(self) -> str:
        model = "the target itself" if self.draft_is_target else "a model"
        drafts = f"accepting {list(self.pattern)}" if self.pattern else f"drafted by {model}"
        stops = f", stop at every {self.stop_every}th token" if self.stop_every else ""
        stops += ", stop tokens in prompts" if self.stops_in_prompts else ""
        prompts = ", ".join(map(abbreviated, self.prompts))
        sampled = f", temperature {self.temperature}" if self.temperature else ""
        return (
            f"{len(self.prompts)} prompts [{prompts}], budgets {list(self.budgets)}, "
            f"batch {self.batch}, gamma {list(self.gammas)}, {drafts}, {self.scheduler} (window {self.window}){stops}, "
            f"{self.dtype}{sampled}, seed {self.seed}"
        )

    @property
    def num_known(self) -> int:
        """Tokens of the true outputs that the case needs: one of two numbers, so that outputs are computed once."""
        return 12 if max(*self.budgets, self.stop_every) <= 12 else 24

    def gamma(self, row: int, turn: int) -> int:
        """The requested draft length of a row in its n-th round."""
        return self.gammas[(2 * row + turn) % len(self.gammas)]

    def num_right(self, row: int, turn: int) -> int:
        """How many drafted tokens of a row are right in its n-th round."""
        return self.pattern[(3 * row + turn) % len(self.pattern)]


tokens_of = st.integers(0, VOCAB - 1)


@st.composite
def programs(draw: Any, trees: bool = True, max_rounds: int = 5, grows: bool = False) -> Program:
    """Draw admissions, releases, forwards of ragged chains and trees over any rows, and commits that keep or cut back.

    With ``grows`` some prompts nearly fill the initial columns of the storage, so that their rows soon exceed them.
    """
    steps: list[Step] = []
    lengths: dict[int, int] = {}
    for turn in range(draw(st.integers(1, max_rounds))):
        if turn == 0 or draw(st.integers(0, 3)) == 3:
            size = st.one_of(st.integers(CROSSED - 8, CROSSED), st.integers(0, 6)) if grows else st.integers(0, 6)
            sizes = draw(st.lists(size, min_size=1, max_size=3))
            # The lowest free numbers: a new row may get the number of one that has left.
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
    """Draw some forwards over the same rows, and the commits after them."""
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
    cut = draw(st.integers(0, len(kept)))  # some rows may commit before the others
    steps += [Commit(tuple(part)) for part in (kept[:cut], kept[cut:]) if part]
    return steps


def _prompt(draw: Any, size: int) -> tuple[int, ...]:
    if size > 12:
        return ramp(draw(tokens_of), size)
    return tuple(draw(st.lists(tokens_of, min_size=size, max_size=size)))


@st.composite
def decoding_cases(
    draw: Any, schedulers: tuple[str, ...], scripted: bool | None = None, temperature: float = 0.0
) -> DecodingCase:
    """Draw ragged prompts, budgets and acceptance for one or more rows, with stop tokens anywhere, prompts included."""
    num_rows = draw(st.integers(1, 5))
    prompts = draw(st.lists(st.lists(tokens_of, min_size=1, max_size=8), min_size=num_rows, max_size=num_rows))
    if draw(st.integers(0, 5)) == 5:  # one row exceeds the initial columns of the storage
        prompts[0] = ramp(prompts[0][0], CROSSED - len(prompts[0]))
    gammas = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    gammas[0] = max(gammas[0], 1)
    by_script = draw(st.booleans()) if scripted is None else scripted
    pattern = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))) if by_script else ()
    batch = draw(st.integers(1, 4))
    return DecodingCase(
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
        temperature=temperature,
    )
