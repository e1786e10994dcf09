"""Trees of guessed tokens, one per row: paths merged by their common beginnings.

A chosen tree has no probabilities: any of its nodes is right or not. Nodes come in the order in which paths ask for
them, so a parent is always before its children, and cutting the list anywhere leaves a tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specdec.alignment.layout import padded
from specdec.core.round import Draft

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class TokenTree:
    """Tokens of the nodes, and each node's parent: -1 for the last committed token."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)


def merged(paths: Iterable[Sequence[int]], max_nodes: int | None = None) -> TokenTree:
    """The tree of all paths; once it has ``max_nodes`` nodes (None: no limit), the rest of them is left out.

    Paths are taken in the given order, so the most promising ones come first.
    """
    tree = TokenTree()
    children: dict[tuple[int, int], int] = {}  # (parent, token): node
    for path in paths:
        node = -1
        for token in path:
            child = children.get((node, token), len(tree.tokens))
            if child == len(tree.tokens):
                if child == max_nodes:
                    return tree
                children[node, token] = child
                tree.tokens.append(token)
                tree.parents.append(node)
            node = child
    return tree


def chosen_trees(trees: list[TokenTree], device: torch.device) -> Draft:
    """One tree per row as a draft without probabilities."""
    tokens = [tree.tokens for tree in trees]
    return Draft(padded(tokens, device), [len(row) for row in tokens], [tree.parents for tree in trees])
