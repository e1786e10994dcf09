"""Trees in the engine: every one decodes what plain decoding does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import each_value, short_only
from harness import ALIGNMENTS, TREES

from specdec.conformance.decoding import drafter_context
from specdec.conformance.models import greedy, sampled, small_pair
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.base import DraftLength
from specdec.engine.loop import RoundLoop
from specdec.engine.output import Event
from specdec.registry import create, names

PROMPTS = [(3, 1, 4, 1, 5, 9), (2,), (7, 1, 8, 2, 8, 1, 8, 2, 8), (5, 5), (1, 6, 1, 8), (9, 9, 1), (4,), (2, 7, 1)]
NUM_NEW = 9
TEMPERATURE = 1.3


def test_every_tree_is_tried():
    assert set(TREES) == set(names("tree"))


class ByRow(DraftLength):
    """Depths that differ by row and round, 0 included."""

    def choose(self, rows: list[Sequence]) -> list[int]:
        return [(row.index + len(row.accepted_lengths) + 2) % 4 for row in rows]


def decode(
    tree: str, drafter="model", alignment="inplace", batch=4, *, mixed=False, execution="eager", dtype="float64"
) -> list[Sequence]:
    """Decode the prompts; with ``mixed`` every second row samples, the others are greedy."""
    target, draft = small_pair(0, dtype)
    for model in (target, draft):
        model.execute(execution)
    clock = Clock()
    context = replace(
        drafter_context(target, draft, clock, ALIGNMENTS[alignment], [[]]), tree=create("tree", tree, **TREES[tree])
    )
    params = {"untrained": True} if drafter != "model" else {}
    loop = RoundLoop(
        ALIGNMENTS[alignment](target, clock),
        create("drafter", drafter, context, **params),
        create("verifier", "naive" if mixed else "greedy"),
        create("scheduler", "continuous", batch, batch + 1),
        ByRow(),
        clock,
    )
    rows = []
    for i, prompt in enumerate(PROMPTS):
        sampling = SamplingParams(TEMPERATURE if i % 2 else 0.0, seed=i) if mixed else None
        rows.append(Sequence(i, list(prompt), NUM_NEW, sampling=sampling))
    pool = SequencePool(rows)
    while not pool.done:
        loop.step(pool)
    return rows


def truth(index: int, mixed: bool, dtype: str = "float64") -> list[int]:
    if mixed and index % 2:
        return list(sampled(0, dtype, PROMPTS[index], NUM_NEW, index, TEMPERATURE))
    return list(greedy(0, dtype, PROMPTS[index], NUM_NEW))


@pytest.mark.parametrize(
    ("tree", "alignment", "batch", "drafter", "mixed"),
    each_value(
        list(TREES), list(ALIGNMENTS), [1, 4, 8], [("model", False), ("model", True), ("eagle", True), ("eagle3", True)]
    ),
)
def test_every_tree_decodes_the_tokens_of_plain_decoding(tree, alignment, batch, drafter, mixed):
    """Greedy rows the argmax; sampled rows, under verifier=naive, the tokens of plain sampling."""
    rows = decode(tree, drafter, alignment, batch, mixed=mixed)
    assert [row.output_ids for row in rows] == [truth(row.index, mixed) for row in rows]


@pytest.mark.parametrize("execution", ["fused", "native"])
def test_trees_under_the_fast_executions(execution):
    for tree in ("paths", "beam"):
        rows = decode(tree, mixed=True, execution=execution, dtype="float32")
        assert [row.output_ids for row in rows] == [truth(row.index, True, "float32") for row in rows]


@pytest.mark.parametrize("tree", short_only(list(TREES), "paths", "beam"))
def test_a_row_drafts_the_same_alone_and_in_a_batch(tree):
    """What is accepted and drafted per row, not only what is emitted."""
    alone, together = (decode(tree, batch=batch, mixed=True) for batch in (1, 8))
    assert [(r.accepted_lengths, r.num_drafted) for r in alone] == [
        (r.accepted_lengths, r.num_drafted) for r in together
    ]


def test_full_acceptance_of_a_tree_is_a_path_that_ends_in_a_leaf():
    draft = Draft(torch.tensor([[5, 6, 7, 8]]), [4], [[-1, -1, 0, 2]])
    assert [draft.end_depth(0, path) for path in ([], [0], [1], [0, 2], [0, 2, 3])] == [3, 3, 1, 3, 3]
    assert draft.ranks(0, [0, 2]) == [0, 0]
    assert draft.ranks(0, [1]) == [1]
    kinds = [Event(0, [1] * (n + 1), n, 4, None, end).kinds[-1] for n, end in ((0, 3), (1, 1), (2, 3), (3, 3))]
    assert kinds == ["recovered", "bonus", "recovered", "bonus"]


def test_a_round_knows_nodes_depths_and_ranks():
    target, draft = small_pair(0, "float64")
    clock = Clock()
    context = drafter_context(target, draft, clock, ALIGNMENTS["inplace"], [[]])
    context = replace(context, draft=target, tree=create("tree", "gumbel", branches=[2, 2]))
    loop = RoundLoop(
        ALIGNMENTS["inplace"](target, clock),
        create("drafter", "model", context),
        create("verifier", "greedy"),
        create("scheduler", "continuous", 1, 1),
        create("draft_length", "fixed", gamma=5),
        clock,
    )
    outcome = loop.step(SequencePool([Sequence(0, [3, 1, 4], 9)]))
    assert (outcome.num_drafted, outcome.depths, outcome.end_depths, outcome.num_accepted) == ([6], [2], [2], [2])
    assert outcome.ranks == [[0, 0]], "the draft is the target"
