"""Declares the built-in trees. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.settings import setting
from specdec.core.siblings import BEAM, CHAIN, CHOSEN, IID, WITHOUT_REPLACEMENT
from specdec.registry import register


@register("tree", "chain", target="specdec.trees.chain:ChainTree", siblings=CHAIN)
@dataclass
class ChainTreeConfig:
    """No tree: one child per node."""


@register("tree", "paths", target="specdec.trees.paths:PathsTree", siblings=IID, shaped=True)
@dataclass
class PathsTreeConfig:
    """Independent paths, merged where they agree (SpecTr, SpecInfer); a chain in greedy rows."""

    num_paths: int = setting(3, "paths per row")


@register("tree", "delayed", target="specdec.trees.paths:DelayedTree", siblings=IID, shaped=True)
@dataclass
class DelayedTreeConfig:
    """A trunk, then independent paths (delayed tree expansion); a chain in greedy rows."""

    num_paths: int = setting(3, "paths per row after the trunk")
    trunk: int = setting(2, "drafted tokens before the paths part; fewer than gamma")


@register("tree", "gumbel", target="specdec.trees.gumbel:GumbelTree", siblings=WITHOUT_REPLACEMENT)
@dataclass
class GumbelTreeConfig:
    """Children sampled without replacement, a set number per depth (RSD-C); in greedy rows the most probable ones."""

    branches: list[int] = setting(
        lambda: [3, 2, 1, 1, 1], "children per node of each depth; as many depths are drafted at most"
    )


@register("tree", "beam", target="specdec.trees.beam:BeamTree", siblings=BEAM)
@dataclass
class BeamTreeConfig:
    """Stochastic beam search (RSD-S); in greedy rows beam search by the draft's probabilities."""

    width: int = setting(4, "nodes per depth")


@register("tree", "confidence", target="specdec.trees.confidence:ConfidenceTree", siblings=CHOSEN, shaped=True)
@dataclass
class ConfidenceTreeConfig:
    """The nodes to which the draft gives the largest probability (EAGLE-2)."""

    top_k: int = setting(4, "nodes that are extended per depth, and children that each of them offers")
    num_nodes: int = setting(16, "nodes that are verified")


@register("tree", "static", target="specdec.trees.static:StaticTree", siblings=CHOSEN, shaped=True)
@dataclass
class StaticTreeConfig:
    """A fixed shape over the most probable tokens, for example from measured acceptance (python -m specdec.trees)."""

    path: str | None = setting(None, "JSON file with parents and ranks; null: the best shape for usual acceptance")
    num_nodes: int = setting(16, "if path is null: nodes of the shape")
