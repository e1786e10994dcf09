"""What a drafter keeps and computes beside its weights, for the prediction of a run's memory. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec.alignment.base import Alignment

if TYPE_CHECKING:
    from specdec.models.causal_lm import CausalLM


@dataclass(frozen=True, slots=True)
class DrafterMemory:
    """By default nothing: neither a model with a cache nor logits."""

    model: CausalLM | None = None  # that it feeds, and whose keys and values it keeps
    alignment: type[Alignment] | None = None  # in whose storage they are; None: that of the run
    block: int | None = None  # tokens of a row that the model is fed per round; None: what the tree feeds
    num_nodes: int | None = None  # of a row's draft, fed to the target; None: as its settings say
    num_logits: int | None = None  # vectors of logits per row and round; None: of what the model is fed, at most
    token_bytes: int = 0  # of the host's memory, per token of a row
    row_bytes: int = 0  # on the model's device, per row, whatever its length
    by_products: bool = False  # whether keys and values of the text are made by products alone, without a forward
    hidden_chunk: int | None = None  # of the target's hidden states that it keeps unread, tokens that it reads at once
