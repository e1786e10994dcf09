"""The kit on trees: those built in pass, and each fault that a third party might make is named."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import no_library

from specdec.conformance import examine
from specdec.conformance.explore import explore
from specdec.conformance.promises import BY_GROUP
from specdec.conformance.suites import tree_suite, verifier_suite
from specdec.core.siblings import CHAIN, WITHOUT_REPLACEMENT
from specdec.trees.base import Children
from specdec.trees.beam import BeamTree
from specdec.trees.confidence import ConfidenceTree
from specdec.trees.gumbel import GumbelTree
from specdec.trees.paths import PathsTree
from specdec.verifiers.multiround import multi_round
from specdec.verifiers.recursive import RecursiveVerifier

TREES = {
    "paths": {},
    "delayed": {"trunk": 1},
    "gumbel": {"branches": [3, 2, 1, 1]},
    "beam": {"width": 3},
    "confidence": {"num_nodes": 9},
    "static": {"num_nodes": 9},
}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("tree", "execution"),
    [*((tree, "eager") for tree in TREES), *((tree, "native") for tree in ("paths", "beam", "static"))],
)
def test_drafters_that_step_by_a_model_keep_every_promise_with_every_tree(tree, execution):
    if execution == "native" and no_library() is not None:
        pytest.skip(f"no native library here: {no_library()}")
    findings = examine("tree", tree, TREES[tree], scale=0.1, shrink=False, execution=execution)
    assert {finding.promise for finding in findings if not finding.kept} == set()
    assert min(finding.num_cases for finding in findings) > 40


def test_a_beam_follows_its_distributions():
    (family,) = [one for one in tree_suite(partial(BeamTree, width=3), 0.02) if one.name == "drawn drafts"]
    findings = explore([family], BY_GROUP["tree"], shrink=False)
    assert all(finding.kept for finding in findings)
    assert findings[0].num_cases == 2


def changed(children: Children, order_BC: torch.Tensor) -> Children:
    """The same children in another order."""

    def moved(part: torch.Tensor) -> torch.Tensor:
        return part.gather(1, order_BC)

    state = {name: moved(value) for name, value in children.state.items()}
    return replace(
        children,
        tokens_BC=moved(children.tokens_BC),
        parents_BC=moved(children.parents_BC),
        real_BC=moved(children.real_BC),
        state=state,
    )


class ByToken(GumbelTree):
    """Siblings stand in the order of their tokens, not of their draws."""

    def __init__(self) -> None:
        super().__init__(branches=[3, 1])

    def grow(self, frontier):
        children = super().grow(frontier)
        return changed(children, (1000 * children.parents_BC + children.tokens_BC).argsort(dim=1))


class Repeating(PathsTree):
    """A token that was drawn twice is two children."""

    def __init__(self) -> None:
        super().__init__(num_paths=3)

    def grow(self, frontier):
        children = super().grow(frontier)
        return replace(children, real_BC=torch.ones_like(children.real_BC))


class Confident(ConfidenceTree):
    """The score of a node is its own probability, so a child may stay where its parent does not."""

    def __init__(self) -> None:
        super().__init__(top_k=3, num_nodes=4)

    def grow(self, frontier):
        frontier.state.pop("score", None)
        return super().grow(frontier)


class Leaning(GumbelTree):
    """Wider where a row is alone."""

    def __init__(self) -> None:
        super().__init__(branches=[3, 1])

    def grow(self, frontier):
        children = super().grow(frontier)
        if len(frontier.rows) > 1:
            children.real_BC[:, 2:3] = False
        return children


@pytest.mark.parametrize(
    ("fault", "family", "promise"),
    [
        (ByToken, "drawn drafts", "distribution"),
        (Repeating, "drawn drafts", "shape"),
        (Confident, "decoding runs", "calls"),
        (Leaning, "decoding runs", "neighbours"),
    ],
)
def test_a_faulty_tree_breaks_its_promise(fault, family, promise):
    assert_broken(tree_suite(fault, 0.02), family, "tree", promise)


@pytest.mark.nightly
def test_a_rule_that_does_not_renormalise_after_a_sibling_is_biased():
    class Fixed(RecursiveVerifier):
        judges = (CHAIN, WITHOUT_REPLACEMENT)

        def emit(self, site):
            return multi_round(site, replacement=True)

    case = assert_broken(verifier_suite(Fixed, 0.02), "emitted tokens", "verifier", "distribution")
    assert "siblings (without_replacement)" in case


def assert_broken(families, name, group, promise):
    """The promise is broken in the first broken case of a family, with a detail; returns the case."""
    (family,) = [family for family in families if family.name == name]
    finding = next(
        one for one in explore([family], BY_GROUP[group], shrink=False, stop_at_first=True) if one.promise == promise
    )
    assert finding.num_broken
    assert finding.detail
    return str(finding.smallest)
