"""A drafter's side of a selector: it keeps the states that a selector may see, and asks it once per round.

Shape letters: B rows, T tokens fed, D hidden size of the target, E that of the draft, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.drafters.last_fed import last_fed
from specdec.selectors.base import RootStates, RowShape, Selector
from specdec.selectors.roots import roots_of
from specdec.trees.base import Tree
from specdec.trees.frontier import Frontier
from specdec.trees.growth import Choose


class Selection:
    """Between rounds it holds the target's hidden state of each row's token before the last one."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self._hidden: dict[int, Tensor] = {}  # (D)
        self._draft: tuple[Tensor, Tensor, list[int]] | None = None  # of this round: hidden states, logits, tokens fed

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        """As `Drafter.observe_hidden`: the last kept token is the one before the next round's last token."""
        last = to_device([columns[-1] if columns else 0 for columns in kept], hidden_BTD.device)
        last_BD = hidden_BTD[torch.arange(len(rows), device=hidden_BTD.device), last]
        self._hidden.update({row.index: last_BD[b] for b, row in enumerate(rows) if kept[b]})

    def observe_draft(self, both_BTX: Tensor, counts: list[int], vocab_size: int) -> Tensor:
        """Keep what the draft's first forward says of the last two tokens; returns its logits (B, T, V)."""
        before_BX, last_BX = last_fed(both_BTX, counts, back=1), last_fed(both_BTX, counts)
        hidden_B2E = torch.stack([before_BX[:, vocab_size:], last_BX[:, vocab_size:]], dim=1)
        self._draft = hidden_B2E, before_BX[:, :vocab_size], counts
        return both_BTX[..., :vocab_size]

    def begin(self, depths: list[int]) -> Choose:
        """What `Growth` calls in a round in which rows may draft so many tokens."""

        def choose(frontier: Frontier) -> list[RowShape]:
            states = self._states(frontier.rows)
            return self.selector.choose(roots_of(frontier, depths, states))

        return choose

    def release(self, rows: list[Sequence]) -> None:
        """Forget finished rows."""
        for row in rows:
            self._hidden.pop(row.index, None)
        self.selector.release([row.index for row in rows])

    def _states(self, rows: list[Sequence]) -> RootStates | None:
        if self._draft is None:
            return None
        hidden_B2E, before_BV, counts = self._draft
        known = [row.index in self._hidden and count > 1 for row, count in zip(rows, counts, strict=True)]
        some = next(iter(self._hidden.values()), hidden_B2E[0, 0])
        nothing = torch.zeros_like(some)
        hidden_BD = torch.stack([self._hidden.get(row.index, nothing) for row in rows])
        return RootStates(hidden_BD, hidden_B2E, before_BV, known)


def shapes_of(selection: Selection | None, tree: Tree, width: int | None, depths: list[int]) -> Choose | None:
    """Who decides the rows' shapes in a round: the selector, the draft-length policy's width, or (None) the tree."""
    if selection is not None:
        return selection.begin(depths)
    if width is None or not tree.shaped:
        return None
    shapes = [RowShape(width, getattr(tree, "trunk", 0), depth) for depth in depths]
    return lambda frontier: shapes
