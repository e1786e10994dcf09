"""Which verifier can judge which drafts, and why others are refused. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from specdec.config.plugins import declared
from specdec.config.schema import RunConfig
from specdec.core.siblings import BEAM, CHAIN, CHOSEN, IID, WITHOUT_REPLACEMENT
from specdec.errors import ConfigError
from specdec.registry import Entry, lookup, names

JUDGED = {
    CHAIN: "chains",
    IID: "i.i.d. children",
    WITHOUT_REPLACEMENT: "children drawn without replacement",
    BEAM: "stochastic beams",
    CHOSEN: "chosen children",
}
"""What a verifier judges."""

NO_SELECTOR = "none"
"""The selector of runs in which all rows have the tree's own shape."""

_DRAFTED = {
    CHAIN: "drafts chains",
    IID: "draws children i.i.d.",
    WITHOUT_REPLACEMENT: "draws children without replacement",
    BEAM: "keeps a stochastic beam",
    CHOSEN: "chooses children and draws none, so there are no probabilities to compare",
}


def check_tree(config: RunConfig) -> None:
    """Refuse a tree that the drafter does not grow, or that the verifier cannot judge.

    Raises:
        ConfigError: with the reason, and what would be valid.
    """
    drafter, tree = declared(config, "drafter"), declared(config, "tree")
    if tree.name != CHAIN and not drafter.grows:
        growing = ", ".join(name for name in names("drafter") if lookup("drafter", name).grows)
        raise ConfigError(
            f"tree={tree.name} with drafter={drafter.name}: only drafters that step by a model grow trees ({growing}); "
            + (drafter.trees or "set tree=chain")
        )
    own = CHOSEN if drafts_own_trees(config.drafter) else drafter.siblings
    check_siblings(config, tree.siblings if drafter.grows else own, declared(config, "verifier").judges)


def check_selector(config: RunConfig) -> None:
    """Refuse a selector without a tree of paths."""
    if config.selector.name != NO_SELECTOR and not (
        declared(config, "tree").shaped and hasattr(config.tree, "num_paths")
    ):
        raise ConfigError(
            f"selector={config.selector.name} with tree={config.tree.name}: it chooses paths and trunks; set "
            "tree=delayed, or selector=none"
        )


def tree_label(config: RunConfig) -> str:
    """The tree's name in tables, with the selector's if there is one."""
    named = config.tree.name
    return named if config.selector.name == NO_SELECTOR else f"{named} ({config.selector.name})"


def drafts_own_trees(drafter: Any) -> bool:
    """Whether a drafter that knows its guesses at once is to arrange them in a tree."""
    return getattr(drafter, "nodes", None) is not None or getattr(drafter, "matches", 1) > 1


def check_siblings(config: RunConfig, siblings: str, judges: Iterable[str]) -> None:
    """Refuse to sample with a verifier whose rule would be biased for drafts of this kind."""
    if config.temperature > 0 and siblings not in judges:
        source = f"tree={config.tree.name}" if config.tree.name != CHAIN else f"drafter={config.drafter.name}"
        raise ConfigError(f"{why_not(config.verifier.name, judges, source, siblings)}, or temperature=0")


def why_not(verifier: str, judges: Iterable[str], source: str, siblings: str) -> str:
    """Why a verifier cannot judge the drafts of ``source``, and which ones can."""
    able = [entry.name for entry in lossless() if siblings in entry.judges]
    return (
        f"verifier={verifier} judges {_listed([JUDGED[kind] for kind in judges])} only; {source} "
        f"{_DRAFTED[siblings]}: set verifier={'|'.join(able)}"
    )


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def lossless() -> list[Entry]:
    """The verifiers that sample from the target's distribution."""
    entries = [lookup("verifier", name) for name in names("verifier")]
    return [entry for entry in entries if entry.samples and not (entry.lossy or entry.known_incorrect)]
