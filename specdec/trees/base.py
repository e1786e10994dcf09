"""The Tree contract: from the nodes of one level, for all rows together, the nodes of the next. Imports no torch.

Shape letters: B rows, N nodes that are extended, C children of a level, J draws of a level, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specdec.core.siblings import CHAIN
from specdec.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.trees.frontier import Frontier

__all__ = ["Children", "RowShape", "Tree", "at_least"]


@dataclass(frozen=True, slots=True)
class RowShape:
    """How large one row's tree may get in one round."""

    width: int  # paths after the trunk (tree=paths, delayed), or nodes (tree=confidence, static)
    trunk: int  # tokens before the paths part
    depth: int  # the deepest node; 0: no draft


@dataclass(frozen=True, slots=True)
class Children:
    """The next level's nodes of all rows. Siblings stand in the order in which they were drawn.

    Tensors other than the tokens may be on the host, where they are known without waiting for the device. Children of
    places that hold no node are ignored, whatever they say.
    """

    tokens_BC: Tensor
    parents_BC: Tensor  # places among the nodes that were extended
    real_BC: Tensor  # bool: False where there is no child (probability 0, or a token drawn before)
    extended_BC: Tensor | None = None  # bool: the children that may have children; None: all
    scores_BC: Tensor | None = None  # float64: the best ``Tree.num_kept`` of a row stay in its draft
    draws_BJ: Tensor | None = None  # i.i.d. siblings: the child of each draw, in drawing order; -1: no draw
    state: dict[str, Tensor] = field(default_factory=dict)  # (B, C, ...): handed to the call that extends them


class Tree(ABC):
    """A rule that grows all rows' trees together, one level per call; it keeps nothing between the calls.

    Promises: a row's nodes depend on that row alone; its random numbers come from ``Frontier.numbers``, and none of
    them decides two things; siblings have different tokens; a greedy row's first child is its most probable token, and
    a sampled row's children are siblings of the declared kind.

    The constructor of a plug-in gets its settings by keyword, and nothing by position. Its registration declares
    ``siblings`` (see `specdec.registry.Entry`), for checks that come before anything is loaded.
    """

    siblings: str = CHAIN
    """The kind of siblings (`specdec.core.siblings`) of sampled rows."""

    max_depth: int | None = None
    """The deepest tree; None means any depth."""

    shaped: bool = False
    """Whether its rows may have different shapes, those of ``Frontier.shapes``; declared where it is registered too."""

    num_kept: int | None = None
    """Nodes that stay in a row's draft, those of the best scores; None: all."""

    @abstractmethod
    def num_nodes(self, depth: int) -> int:
        """Nodes of a row's draft of this depth, at most."""

    def num_fed(self, depth: int) -> int:
        """Nodes of a row that the draft model is fed for it, at most: by default all that may have children."""
        return self.num_nodes(depth - 1) if depth > 1 else 0

    def widths(self) -> list[int]:
        """Widths below its own that are worth measuring, for trees that are ``shaped``."""
        return []

    def largest(self) -> Tree:
        """The tree for rows that have shapes of their own; it counts nodes for the largest of them."""
        return self

    def check(self, depth: int) -> None:  # noqa: B027
        """Refuse settings that make no sense for trees of this depth; by default there are none."""

    @abstractmethod
    def grow(self, frontier: Frontier) -> Children:
        """The children of the frontier's nodes. A row's depth is bounded by the caller."""


def at_least(setting: str, value: int, least: int = 1) -> int:
    """The value; a ConfigError if it is below ``least``."""
    if value < least:
        raise ConfigError(f"tree.{setting}={value}: it must be at least {least}")
    return value
