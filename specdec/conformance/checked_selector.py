"""A selector that checks another one: every choice is compared with that of one that was just prepared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from specdec.conformance.cases import DecodingCase
from specdec.conformance.decoding import Parts, check_run
from specdec.conformance.models import small_pair
from specdec.conformance.promises import Broken, construct, reporting_errors
from specdec.conformance.selector_copies import MakeSelector, copies_of, prepared_context
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.model import ModelDrafter
from specdec.selectors.base import Roots, RootStates, RowShape, Selector
from specdec.trees.paths import PathsTree

NUM_PATHS = 3


class CheckedSelector(Selector):
    """Chooses what ``inner`` chooses, and notes every broken promise."""

    def __init__(self, inner: Selector, fresh: Callable[[], Selector], num_paths: int, notes: list[Broken]) -> None:
        self.inner, self.fresh, self.num_paths, self.notes = inner, fresh, num_paths, notes
        self.reads_states = inner.reads_states

    def choose(self, roots: Roots) -> list[RowShape]:
        scores_BV = roots.draft_scores_BV.clone()
        shapes = self.inner.choose(roots)
        if problem := _problem(shapes, roots, self.num_paths):
            self.notes.append(Broken("shapes", problem))
        elif not scores_BV.equal(roots.draft_scores_BV):
            self.notes.append(Broken("purity", "the draft's logits were changed"))
        else:
            self._compare(shapes, roots)
        return shapes

    def release(self, indices: list[int]) -> None:
        self.inner.release(indices)

    def _compare(self, shapes: list[RowShape], roots: Roots) -> None:
        together = self.fresh().choose(roots)
        for b, row in enumerate(roots.indices):
            alone = self.fresh().choose(root_of(roots, b))[0]
            if together[b] != alone:
                detail = f"row {row} gets {together[b]} beside others and {alone} alone"
                self.notes.append(Broken("neighbours", detail))
            elif shapes[b] != alone:
                detail = f"row {row} of {roots.lengths[b]} tokens gets {shapes[b]} in this round, {alone} afresh"
                self.notes.append(Broken("state", detail))


@reporting_errors
def check_selected_run(case: DecodingCase, make: MakeSelector) -> list[Broken]:
    """A sampled run whose drafts have the shapes of a checked selector.

    Raises:
        RefusedError: the selector's constructor refuses the models or the verifier.
    """
    notes: list[Broken] = []
    models = small_pair(case.seed, case.dtype)
    models = (models[0], models[0]) if case.draft_is_target else models
    context = prepared_context(models, NUM_PATHS, max(case.gammas), case.temperature)
    fresh = construct(copies_of, make, context, case.batch)

    def drafter(tools: DrafterContext) -> Drafter:
        checked = CheckedSelector(fresh(), fresh, NUM_PATHS, notes)
        return ModelDrafter(replace(tools, tree=PathsTree(num_paths=NUM_PATHS), selector=checked))

    found = partial(check_run, case, Parts(drafter=drafter))()
    return notes or found  # what else happened may follow from these


def root_of(roots: Roots, b: int) -> Roots:
    """The root of one row."""
    states, one = roots.states, slice(b, b + 1)
    if states is not None:
        states = RootStates(
            states.target_hidden_BD[one], states.draft_hidden_B2E[one], states.draft_before_BV[one], states.known_B[one]
        )
    return Roots(
        roots.indices[one],
        lambda _: roots.tokens(b),
        roots.lengths[one],
        roots.depths[one],
        roots.settings[one],
        roots.draft_scores_BV[one],
        states,
    )


def _problem(shapes: list[RowShape], roots: Roots, num_paths: int) -> str:
    """What is wrong with the shapes; empty if nothing is."""
    if len(shapes) != len(roots.indices):
        return f"{len(shapes)} shapes for {len(roots.indices)} rows"
    for shape, depth in zip(shapes, roots.depths, strict=True):
        if not 0 <= shape.depth <= depth:
            return f"{shape} where a row may draft {depth} tokens in a row"
        if not 1 <= shape.width <= num_paths or shape.trunk < 0:
            return f"{shape} where a row may have 1 to {num_paths} paths after a trunk of at least 0 tokens"
    return ""
