"""One point while it runs: its config, and everything that was loaded and measured for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdec.config.reference import reference_key
from specdec.config.schema import RunConfig
from specdec.core.prompts import Prompt
from specdec.core.sequence import Sequence
from specdec.equivalence.store import ReferenceStore
from specdec.models.pair import Pair
from specdec.run.distributed import Ranks
from specdec.run.folder import RunFolder
from specdec.run.memory_plan import MemoryPlan


@dataclass(slots=True)
class Run:
    """What the steps of a point share, in every process of the run."""

    config: RunConfig
    folder: RunFolder
    ranks: Ranks
    pair: Pair
    prompts: list[Prompt]  # of all processes
    plan: MemoryPlan  # its predicted memory
    env: dict[str, Any]  # what env.json holds
    store: ReferenceStore | None  # the reference outputs; None: there are none

    def reference_of(self, row: Sequence) -> list[int] | None:
        """The reference output of a row, if it is known."""
        if self.store is None:
            return None
        return self.store.get(reference_key(self.config, row.index, row.prompt_ids))
