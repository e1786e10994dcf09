"""Log-probabilities of continuations, in padded batches, against each row's own forward (no lm-evaluation-harness)."""

from __future__ import annotations

import pytest
import torch
from conftest import VOCAB, greedy_alone, small_llama

from specdec.lm_eval.scoring import continuation_scores
from specdec.models.causal_lm import CausalLM


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_are_those_of_each_row_alone(batch):
    model = CausalLM(small_llama(0, torch.float64))
    context, width = [3, 1, 4, 1, 5], 9
    best = greedy_alone(model, context, 3, frozenset())
    pairs = [(context, best), (context, [best[0], (best[1] + 1) % VOCAB]), ([2], [0, 0, 7]), (context, [])]
    pairs += [(list(range(20)), [4, 9]), (context, list(range(30, 45)))]  # cut to the last `width` tokens and one more
    expected = []
    for before, after in pairs:
        ids = (before + after)[-(width + 1) :]
        num = min(len(after), len(ids) - 1)
        logprobs_TV = model.module(torch.tensor([ids])).logits[0].detach().float().log_softmax(-1)
        places = range(len(ids) - num - 1, len(ids) - 1)
        greedy = all(int(logprobs_TV[at].argmax()) == ids[at + 1] for at in places)
        expected.append((sum(float(logprobs_TV[at, ids[at + 1]]) for at in places), greedy))
    found = continuation_scores(model, pairs, batch, width)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert (found[0][1], found[1][1]) == (True, False)
