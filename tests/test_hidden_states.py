"""The target's hidden states that a drafter asks for: every row's own, once per token, in any batch."""

from __future__ import annotations

import pytest
import torch
from cases import each_value
from conftest import greedy_alone, no_library, small_llama
from harness import ALIGNMENTS, run_all

from specdec.core.clock import Clock
from specdec.core.outputs import NORMED, Outputs
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.draft_lengths.fixed import FixedLength
from specdec.drafters.base import Drafter
from specdec.engine.loop import RoundLoop
from specdec.errors import ContractError
from specdec.models.causal_lm import CausalLM
from specdec.schedulers.continuous import ContinuousScheduler
from specdec.verifiers.greedy import GreedyVerifier

LAYERS, NEW = (2, 0, NORMED), 9
EXECUTIONS = ["eager", "fused", "native", "eager invariant", "fused invariant"]


class Recording(Drafter):
    """Drafts a tree whose first path is right for a while, and keeps the hidden states of the kept tokens."""

    hidden_layers = LAYERS

    def __init__(self, truth: list[list[int]]) -> None:
        self.truth, self.seen = truth, {b: [] for b in range(len(truth))}

    def observe_hidden(self, rows, hidden_BTD, kept):
        for b, row in enumerate(rows):
            self.seen[row.index] += [hidden_BTD[b, column].clone() for column in kept[b]]

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        tokens, parents = [], []
        for row, gamma in zip(rows, gammas, strict=True):
            true = self.truth[row.index][len(row.output_ids) :][: min(gamma, (row.index + row.length) % 4)]
            wrong = [(token + 1) % 50 for token in true]
            tokens.append([token for pair in zip(wrong, true, strict=True) for token in pair])
            parents.append([2 * depth - 1 for depth in range(len(true)) for _ in range(2)])
        width = max(map(len, tokens))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in tokens]).view(len(rows), width)
        return Draft(padded.long(), [len(row) for row in tokens], parents)

    def release(self, rows: list[Sequence]) -> None:
        """Keeps what it saw."""


@pytest.mark.parametrize(("alignment", "execution", "chunk"), each_value(list(ALIGNMENTS), EXECUTIONS, [None, 3]))
@torch.inference_mode()
def test_every_row_gets_its_own_layers_in_chunks_trees_and_refilled_batches(prompts, alignment, execution, chunk):
    if execution == "native" and (reason := no_library()):
        pytest.skip(f"no native library here: {reason}")
    model = CausalLM(small_llama(0, torch.float32))
    truth = [greedy_alone(model, prompt, NEW, frozenset()) for prompt in prompts]
    drafter = Recording(truth)
    model.execute(*execution.split())
    clock = Clock()
    engine = RoundLoop(
        ALIGNMENTS[alignment](model, clock),
        drafter,
        GreedyVerifier(),
        ContinuousScheduler(3, 3),
        FixedLength(gamma=3),
        clock,
        prefill_chunk=chunk,
    )
    rows, rounds = run_all(engine, prompts, [NEW - i % 3 for i in range(len(prompts))])
    assert 0 < sum(sum(outcome.num_accepted) for outcome in rounds) < sum(map(len, truth))
    for row in rows:
        assert row.output_ids == truth[row.index][: row.max_new_tokens]
        # The last round's accepted tokens may be more than the row emits, and its last token is never fed.
        tokens = row.tokens(0)[:-1]
        states = model.module(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        expected_TD = torch.cat([states[number][0] for number in LAYERS], dim=-1)
        found_TD = torch.stack(drafter.seen[row.index][: len(tokens)])
        torch.testing.assert_close(found_TD, expected_TD, atol=2e-4, rtol=2e-4)


def test_a_layer_that_does_not_exist_is_refused():
    model = CausalLM(small_llama(0, torch.float32))
    with (
        pytest.raises(ContractError, match=r"hidden states \(3,\) of a model of 3 layers"),
        model.call_options(Outputs(hidden=(3,))),
    ):
        pass
