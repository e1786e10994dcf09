"""No selection: every row has the tree's own shape in every round."""

from __future__ import annotations

from specdec.selectors.base import Roots, RowShape, Selector, SelectorContext


class NoSelector(Selector):
    """The tree's own paths and trunk, as deep as the row may draft. Runs leave it out; it is for comparisons."""

    def __init__(self, context: SelectorContext) -> None:
        self._context = context

    def choose(self, roots: Roots) -> list[RowShape]:
        return [RowShape(self._context.num_paths, self._context.trunk, depth) for depth in roots.depths]
