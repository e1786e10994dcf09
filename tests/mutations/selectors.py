"""Bugs in selectors of tree shapes: those that look at what they may not, and those that return what they may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mutations.planting import Patch, planted
from specdec.core.random_numbers import DRAFT, uniforms
from specdec.selectors.base import Roots, RowShape
from specdec.selectors.none import NoSelector

RUNS = "sampled runs"


class _Deciding(NoSelector):
    """Rows draft two paths, or nothing: a subclass says which."""

    def choose(self, roots: Roots) -> list[RowShape]:
        return [RowShape(2, 0, depth * self.drafts(roots, b)) for b, depth in enumerate(roots.depths)]

    def drafts(self, roots: Roots, b: int) -> bool:
        raise NotImplementedError


def _deciding(by: Callable[[Roots, int], bool]) -> type[_Deciding]:
    return type("Deciding", (_Deciding,), {"drafts": lambda self, roots, b: by(roots, b)})


def _number(seed: int, roots: Roots, b: int) -> float:
    """The random number that decides the first drafted token."""
    return float(uniforms([(seed, roots.indices[b])], [[roots.lengths[b]]], DRAFT, [0]))


@planted("selector=none", "finds the rows' seeds, and drafts where the first draw is the first token", "law")
def reads_the_seed(patch: Patch) -> Any:
    def drafts(roots: Roots, b: int) -> bool:
        cells: Any = getattr(roots.tokens, "__closure__", None) or ()
        rows = next((cell.cell_contents for cell in cells if isinstance(cell.cell_contents, list)), None)
        return rows is None or _number(rows[b].sampling.seed, roots, b) < 0.5

    return _deciding(drafts)


@planted("selector=none", "takes the seed to be 0, and drafts where the first draw is the first token", "law")
def guesses_the_seed(patch: Patch) -> Any:
    return _deciding(lambda roots, b: _number(0, roots, b) < 0.5)


@planted("selector=none", "drafts in full batches only", "neighbours", RUNS)
def counts_rows(patch: Patch) -> Any:
    return _deciding(lambda roots, b: len(roots.indices) > 1)


@planted("selector=none", "decides by the longest row", "neighbours", RUNS)
def longest_row(patch: Patch) -> Any:
    return _deciding(lambda roots, b: max(roots.lengths) % 2 == 0)


@planted("selector=none", "decides by the first row's logits", "neighbours", RUNS)
def first_row(patch: Patch) -> Any:
    return _deciding(lambda roots, b: bool(roots.draft_scores_BV[0].argmax() % 2))


@planted("selector=none", "takes turns", "state", RUNS)
def takes_turns(patch: Patch) -> Any:
    class Turns(_Deciding):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            self.turns: dict[int, int] = {}

        def drafts(self, roots: Roots, b: int) -> bool:
            row = roots.indices[b]
            self.turns[row] = self.turns.get(row, 0) + 1
            return self.turns[row] % 2 == 1

    return Turns


def _changed(change: Callable[[list[RowShape]], list[RowShape]]) -> type[NoSelector]:
    def choose(self: NoSelector, roots: Roots) -> list[RowShape]:
        return change(NoSelector.choose(self, roots))

    return type("Changed", (NoSelector,), {"choose": choose})


@planted("selector=none", "is a token too deep", "shapes", RUNS)
def too_deep(patch: Patch) -> Any:
    return _changed(lambda shapes: [RowShape(shape.width, shape.trunk, shape.depth + 1) for shape in shapes])


@planted("selector=none", "has a path too many", "shapes", RUNS)
def too_wide(patch: Patch) -> Any:
    return _changed(lambda shapes: [RowShape(shape.width + 1, shape.trunk, shape.depth) for shape in shapes])


@planted("selector=none", "returns one shape for all rows", "shapes", RUNS)
def one_for_all(patch: Patch) -> Any:
    return _changed(lambda shapes: shapes[:1])


@planted("selector=none", "flattens the draft's logits in place", "purity", RUNS)
def flattens(patch: Patch) -> Any:
    class Flattens(NoSelector):
        def choose(self, roots: Roots) -> list[RowShape]:
            roots.draft_scores_BV.mul_(0.5)
            return super().choose(roots)

    return Flattens
