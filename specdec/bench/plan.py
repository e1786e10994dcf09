"""Which measurements a suite consists of, and their order: in turns, each of which begins with another method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from specdec.bench.suite import Library, Method, Study, Suite
from specdec.core.files import digest


@dataclass(frozen=True, slots=True)
class BenchCell:
    """What one figure of a table belongs to."""

    study: str
    pair: str
    context: int | None
    batch: int
    method: str


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement: a cell, in one turn."""

    cell: BenchCell
    repeat: int
    key: str  # names the measurement on disk; changes with every setting that decides it


def steps(suite: Suite, library: Library, pair: str) -> Iterator[Step]:
    """All measurements on a pair, in the order they are taken: cell by cell, or where time is short turn by turn."""
    planned = _cell_by_cell(suite, library, pair)
    return iter(sorted(planned, key=lambda step: step.repeat)) if suite.minutes is not None else planned


def _cell_by_cell(suite: Suite, library: Library, pair: str) -> Iterator[Step]:
    for name, study in suite.studies.items():
        if pair not in study.pairs:
            continue
        for context in study.contexts:
            for batch in study.batches:
                for repeat in range(study.repeats or suite.repeats):
                    for method in turn(study.methods, repeat):
                        cell = BenchCell(name, pair, context, batch, method)
                        yield Step(cell, repeat, _key(suite, study, library, cell, repeat))


def cells_of(
    name: str,
    study: Study,
    pairs: list[str] | None = None,
    contexts: list[int | None] | None = None,
    methods: list[str] | None = None,
    batches: list[int] | None = None,
) -> list[BenchCell]:
    """The cells of a study, or of a part of it, in the order of its tables."""
    parts = (pairs or study.pairs, contexts or study.contexts, methods or study.methods, batches or study.batches)
    return [BenchCell(name, pair, context, batch, method) for pair, context, method, batch in product(*parts)]


def turn(methods: list[str], repeat: int) -> list[str]:
    """The order of one turn: A B C, then B C A, then C A B, so that no method always follows the same other one."""
    shift = repeat % len(methods) if methods else 0
    return methods[shift:] + methods[:shift]


def pairs(suite: Suite) -> list[str]:
    """Pairs in the order they are loaded, each once."""
    return list(dict.fromkeys(pair for study in suite.studies.values() for pair in study.pairs))


def num_prompts(study: Study, batch: int) -> int:
    """Prompts of a cell: enough that finished rows are replaced."""
    return max(study.min_prompts, study.prompts_per_row * batch)


def refusal(method: Method, batch: int) -> str | None:
    """Why a method is not measured at a batch size."""
    if method.batches is not None and batch not in method.batches:
        return f"batch {', '.join(map(str, method.batches))} only"
    return None


def _key(suite: Suite, study: Study, library: Library, cell: BenchCell, repeat: int) -> str:
    decides: dict[str, Any] = {
        "cell": asdict(cell),
        "pair": library.pairs[cell.pair],
        "method": {key: value for key, value in asdict(library.methods[cell.method]).items() if key != "note"},
        "overrides": study.overrides,
        "max_new_tokens": study.max_new_tokens,
        # Only where it is set, so that measurements from before this setting keep their names.
        **({"spread": study.spread} if study.spread else {}),
        "num_prompts": num_prompts(study, cell.batch),
        "bound": study.bound,
        "threads": suite.threads,
        "data": study.data or suite.data,
        "repeat": repeat,
    }
    return digest(decides)
