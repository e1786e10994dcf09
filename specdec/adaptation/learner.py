"""The Learner contract: the weights of one drafter, as something that learns from finished rows. Imports no torch.

A drafter names its learner where it is registered (`specdec.registry.Entry.learner`). Its constructor gets the drafter
and the `DrafterContext` by position, and ``lr`` and ``depth`` (drafted tokens in a row that it teaches) by keyword.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.adaptation.served import ServedRow


class Learner(ABC):
    """Updates a part of a drafter (an *arm*), and tells what its weights are worth on rows that they did not learn."""

    arms: tuple[str, ...]
    """What can be updated, the cheapest first."""

    missing: Mapping[str, str] = MappingProxyType({})
    """What else its drafter has, and why it cannot be updated."""

    @abstractmethod
    def num_rounds(self, rows: list[ServedRow], *, before: bool = False) -> list[int]:
        """Rounds in which greedy drafts would have decoded each of these rows, with the weights of now.

        Args:
            before: with those of the last ``mark`` instead.
        """

    @abstractmethod
    def mark(self) -> None:
        """Remember the weights of now."""

    @abstractmethod
    def restore(self) -> None:
        """Draft with the weights of the last ``mark`` again."""

    @abstractmethod
    def update(self, arm: str, rows: list[ServedRow]) -> None:
        """Take one step of learning from these rows, and draft with the new weights from now on."""
