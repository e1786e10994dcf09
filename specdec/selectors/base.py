"""The Selector contract: the shape of each row's tree, by what is known at its root. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.errors import ConfigError
from specdec.trees.base import RowShape

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.models.causal_lm import CausalLM

__all__ = ["RootStates", "Roots", "RowShape", "Selector", "SelectorContext", "chosen_shape"]


@dataclass(frozen=True, slots=True)
class RootStates:
    """What the models computed before the root. B rows, D and E the hidden sizes of target and draft, V vocabulary."""

    target_hidden_BD: Tensor  # of the token before the last one; the target has not been fed the last one yet
    draft_hidden_B2E: Tensor  # of the token before the last one, and of the last one
    draft_before_BV: Tensor  # logits after the token before the last one; those after the last one are Roots' own
    known_B: list[bool]  # False: the row has one token only, or does not draft; then values are anything


@dataclass(frozen=True, slots=True)
class Roots:
    """What a selector may see of the rows: nothing here depends on the tokens that are about to be drawn.

    Seeds are left out, because the draws follow from them.
    """

    indices: list[int]  # names of the rows, the same in all rounds
    tokens: Callable[[int], list[int]]  # all tokens of row b
    lengths: list[int]
    depths: list[int]  # the deepest tree that each row may have in this round; 0: it does not draft
    settings: list[SamplingParams]  # with seed 0
    draft_scores_BV: Tensor  # the draft's logits after the last token, penalised
    states: RootStates | None = None  # for selectors that have ``reads_states``


@dataclass(frozen=True, slots=True)
class SelectorContext:
    """What a selector is built for."""

    num_paths: int  # most paths of a shape
    trunk: int  # of the tree's own shape
    depth: int  # of the deepest shape
    verifier: str
    params: SamplingParams  # of the run's rows
    pair: list[str] = field(default_factory=list)  # fingerprints of target and draft
    target: CausalLM | None = None
    draft: CausalLM | None = None  # None: the drafter makes its own
    clock: Clock = field(default_factory=Clock)


class Selector(ABC):
    """Chooses a shape for each row and round, after the draft's first forward and before any node is drawn.

    Promises: ``choose`` is a function of its argument and of what was known before the run; a row's shape depends on
    that row alone. So the output keeps the target's distribution whatever is chosen: a round is lossless for each
    shape, and the choice says nothing of the tokens that are drawn afterwards.

    A plug-in's constructor gets a `SelectorContext` by position and its settings by keyword.
    """

    reads_states: bool = False
    """Whether ``Roots.states`` is wanted; it costs the hidden states of both models' forwards."""

    def prepare(self, batch: int) -> None:  # noqa: B027
        """Called before the clock of a run of up to ``batch`` rows starts; by default nothing is done."""

    @abstractmethod
    def choose(self, roots: Roots) -> list[RowShape]:
        """The shape of each row, no deeper than ``roots.depths``."""

    def release(self, indices: list[int]) -> None:  # noqa: B027
        """Forget rows, which do not return; by default nothing is kept."""


def chosen_shape(where: str, num_paths: int, trunk: int, branch: int) -> RowShape:
    """The shape (K, L1, L2) of a file or a setting.

    Raises:
        ConfigError: it is none.
    """
    for name, value, least in (("num_paths", num_paths, 1), ("trunk", trunk, 0), ("branch", branch, 0)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{where}: {name}={value}: it must be a whole number of at least {least}")
    return RowShape(num_paths, trunk, trunk + branch)
