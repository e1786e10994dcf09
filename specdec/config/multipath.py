"""A tree for each verifier, of a kind that it can judge: ``tree=for_${verifier}`` in presets. All are of one size."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore

from specdec.core.siblings import CHOSEN, IID, WITHOUT_REPLACEMENT
from specdec.registry import Entry, declared_so_far


def tree_for(verifier: Entry) -> dict[str, Any]:
    """Three paths of gamma tokens; siblings without replacement for rules made for them; else a chain."""
    kinds = set(verifier.judges)
    if WITHOUT_REPLACEMENT in kinds and CHOSEN not in kinds:
        return {"defaults": ["gumbel"], "branches": [3, 1, 1, 1, 1]}
    return {"defaults": ["paths"], "num_paths": 3} if IID in kinds else {"defaults": ["chain"]}


for _entry in declared_so_far("verifier"):
    ConfigStore.instance().store(group="tree", name=f"for_{_entry.name}", node=tree_for(_entry))
