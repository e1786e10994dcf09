"""What a drafter is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec.alignment.base import Alignment
from specdec.clock import Clock

if TYPE_CHECKING:
    import torch

    from specdec.model import CausalLM


@dataclass(frozen=True, slots=True)
class DrafterContext:
    """The models and tools that a drafter may use; models other than the target's are wrapped by ``align``."""

    target: CausalLM
    draft: CausalLM | None
    align: Callable[[CausalLM], Alignment]  # wraps a model in the run's alignment strategy
    clock: Clock

    @property
    def device(self) -> torch.device:
        """Where drafted tokens must be."""
        return self.target.device
