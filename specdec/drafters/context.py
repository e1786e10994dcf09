"""What a drafter is built from. Imports no torch: plug-ins import this module when they are announced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from specdec.alignment.base import Alignment
from specdec.core.clock import Clock
from specdec.selectors.base import Selector
from specdec.trees.base import Tree

if TYPE_CHECKING:
    import torch

    from specdec.core.sequence import KnownOutput
    from specdec.models.causal_lm import CausalLM


def _chain() -> Tree:
    from specdec.trees.chain import ChainTree

    return ChainTree()


@dataclass(frozen=True, slots=True)
class DrafterContext:
    """The models and tools that a drafter may use; models other than the target's are wrapped by ``align``.

    A drafter that runs a `CausalLM` of its own without ``align`` gives it ``target.observers``, so that its forwards
    are counted with the run's.
    """

    target: CausalLM
    draft: CausalLM | None
    align: Callable[[CausalLM], Alignment]  # wraps a model in the run's alignment strategy
    clock: Clock
    tokenizer: Any = None  # the target's; None where only ids are known
    draft_tokenizer: Any = None  # the draft's own, where it differs
    known_output: KnownOutput | None = None  # the reference, where there is one
    tree: Tree = field(default_factory=_chain)  # for a drafter that steps by a model
    selector: Selector | None = None  # of the rows' shapes; None: all have the tree's own
    allow_pickle: bool = False  # whether a drafter may read pickled weights

    @property
    def device(self) -> torch.device:
        """Where drafted tokens must be."""
        return self.target.device
